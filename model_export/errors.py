"""The error that the command line prints as one line, with exit code 2."""

import re

from pydantic import ValidationError

from service.artifact.files import NAME_PATTERN
from service.domain.errors import reason_of


class UserError(Exception):
    """The user can fix the cause: a path, a data set, a checkpoint or an option. The text says
    which.
    """


def card_error(exc: ValidationError) -> UserError:
    """What is wrong with the field of a card that an option has set."""
    first = exc.errors(include_url=False)[0]
    # A check of several fields has the whole card as its input. Its message begins with the field.
    where = f"{first['loc'][0]} {first['input']!r}: " if first["loc"] else ""
    return UserError(f"--{where}{reason_of(first)}")


def check_name(name: str) -> None:
    """Raise `UserError` unless this can be the name of a model."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            f"--name {name}: small letters, digits, and _ . - after the first, 64 at most"
        )
