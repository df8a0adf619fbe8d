"""What the command line reports as one clear line with exit code 2."""


class UserError(Exception):
    """Something the user can put right: a path, a data set, a checkpoint, an option. The text says what."""
