"""Pieces of Markdown, and names as a page writes them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Table = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; as many cells in every row as in the head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(text: str) -> str:
    """Text on one line, for a list or a cell."""
    return " ".join(text.split())


def block(*commands: str) -> str:
    """Shell commands, one a line."""
    return "\n".join(["```sh", *commands, "```"])


def is_power(name: str) -> bool:
    """Whether this is f, f2, f3, … as `evaluate` names them."""
    return name == "f" or (name[:1] == "f" and name[1:].isdigit())


def formula(name: str) -> str:
    """Powers of f as one writes them, other names as words: f2 → f²."""
    return f"f{power(int(name[1:] or 1))}" if is_power(name) else name.replace("_", " ")


def power(k: int) -> str:
    """The exponent, nothing for 1."""
    return "" if k == 1 else str(k).translate(_SUPERSCRIPTS)


def leaves(value: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is in nested tables, with the names on the way joined by dots."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from leaves(item, f"{name}.")
        else:
            yield name, item
