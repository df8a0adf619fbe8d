"""Markdown fragments, and the names of measures as a page shows them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Table = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(text: str) -> str:
    """Text without line breaks, for a list or a cell."""
    return " ".join(text.split())


def code_block(*commands: str) -> str:
    """Shell commands, one a line."""
    return "\n".join(["```sh", *commands, "```"])


def is_power(name: str) -> bool:
    """Whether the name is f, f2, f3, …, as `evaluate` writes the powers of f."""
    return name == "f" or (name[:1] == "f" and name[1:].isdigit())


def formula(name: str) -> str:
    """A power of f with a superscript, f2 → f²; any other name as words."""
    return f"f{superscript(int(name[1:] or 1))}" if is_power(name) else name.replace("_", " ")


def superscript(k: int) -> str:
    """The exponent k; empty for 1."""
    return "" if k == 1 else str(k).translate(_SUPERSCRIPTS)
