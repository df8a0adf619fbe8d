"""The error that the command line prints as one line, with exit code 2."""


class UserError(Exception):
    """The user can fix the cause: a path, a data set, a checkpoint or an option. The text says
    which.
    """
