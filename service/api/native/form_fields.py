"""Convert options that arrive as text, in multipart fields or in the query, to the values that JSON would have."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from service.api.http.body import printable_name
from service.domain.errors import InvalidContent

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def parse_fields(fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Convert one text for each field by the type of the option; other fields stay text.

    Text that cannot be converted stays text, too, and validation rejects it later with the name of the field.

    Raises:
        InvalidContent: a field is given more than once.
    """
    converted = {}
    for name, texts in fields.items():
        if len(texts) != 1:
            raise InvalidContent.field(printable_name(name), "given more than once")
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
    "scale": _integer,
    "columns": _integer,
    "gap": _integer,
    "tolerance": _number,
    "strength": _number,
    "score": _boolean,
    "record": _integers,
    "invert": _boolean,
}
