"""Options that arrive as text, in multipart fields or in the query, as the values JSON would carry."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from service.domain.errors import InvalidContent

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def values(fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One value per field, converted by the field's name; text that is no such value stays text, and fails later.

    Raises:
        InvalidContent: a field is given more than once.
    """
    converted = {}
    for name, texts in fields.items():
        if len(texts) != 1:
            raise InvalidContent.field(name[:200], "given more than once")
        converted[name] = _CONVERTERS.get(name, str)(texts[0])
    return converted


def _integer(text: str) -> object:
    return int(text) if _INTEGER.fullmatch(text) else text


def _number(text: str) -> object:
    return float(text) if _NUMBER.fullmatch(text) else text


def _boolean(text: str) -> object:
    return _BOOLEANS.get(text.lower(), text)


def _integers(text: str) -> object:
    return [_integer(part.strip()) for part in text.split(",", 64)]


_CONVERTERS: Final[dict[str, Callable[[str], object]]] = {
    "steps": _integer,
    "tolerance": _number,
    "strength": _number,
    "score": _boolean,
    "record": _integers,
    "invert": _boolean,
}
