"""Checks of arguments that several commands share."""

import argparse
from typing import Final

from model_export.errors import UserError

_MOST: Final = 1024
_PATHS: Final = ("data", "out", "start", "run", "models", "model", "cache", "fid-weights")


def count(text: str) -> int:
    """A number of threads or processes; the `type` of an option.

    Raises:
        ArgumentTypeError: no whole number from 1 to 1024.
    """
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {_MOST}")
    return int(text)


def refuse_empty_paths(options: argparse.Namespace) -> None:
    """Refuse paths without a character: they would stand for the current folder."""
    for name in _PATHS:
        if getattr(options, "run_folder" if name == "run" else name.replace("-", "_"), None) == "":
            raise UserError(f"--{name}: the path is empty")
