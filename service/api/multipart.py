"""Parse `multipart/form-data` bodies, and options that arrive as text in their fields or in a query.

Starlette's `request.form()` uses the same parser library, but cannot keep the contract: it treats an image without a
file name as text, decodes text that is not UTF-8 as latin-1, accepts a body without its last boundary, and answers too
many files or fields with 400 and without a field name instead of 422.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import QueryParams

from service.api.body import parse_content_type, printable_name
from service.domain.errors import InvalidContent, MalformedRequest

MUST_BE_A_FILE: Final = "must be a file, with a file name or the Content-Type of an image; with curl, -F NAME=@FILE"
_CHUNK_BYTES: Final = 1 << 16
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def parse_multipart(
    content_type: str, body: bytes, *, max_files: int, max_fields: int, file_names: Collection[str] = ()
) -> tuple[dict[str, list[str]], dict[str, list[bytes]]]:
    """Split a `multipart/form-data` body into fields and files, each as a mapping from name to its values in order.

    A part with a file name, or with the content type of an image, is a file. Every other part is a UTF-8 field. A
    file part without name and content, which browsers send for an empty file input, is skipped.

    Raises `MalformedRequest` without a first or last boundary, or for a part without a name or a field that is not
    UTF-8, and `InvalidContent` for too many files or fields, or if a part of ``file_names`` is a field not in UTF-8.
    """
    boundary = parse_content_type(content_type)[1].get("boundary", "")
    if not boundary:
        raise MalformedRequest("Content-Type: the boundary is missing")
    form = _MultipartParser(max_files=max_files, max_fields=max_fields, file_names=file_names)
    try:
        form.feed(boundary.encode("latin-1"), body)
    except FormParserError as exc:
        raise MalformedRequest("the body is not valid multipart/form-data") from exc
    if not form.complete:
        raise MalformedRequest("the multipart body ends before its last boundary")
    return dict(form.fields), dict(form.files)


class _MultipartParser:
    """Collects the parts of a form from the callbacks of `python_multipart.MultipartParser`.

    The library calls `on_header_field`, `on_header_value` and `on_part_data` once for each chunk of a header or part,
    so each of the three has a buffer. The order of calls for one part is: begin, headers, end of headers, data, end.
    """

    def __init__(self, *, max_files: int, max_fields: int, file_names: Collection[str]) -> None:
        self.fields: defaultdict[str, list[str]] = defaultdict(list)
        self.files: defaultdict[str, list[bytes]] = defaultdict(list)
        self.complete = False
        self._remaining = {"files": max_files, "fields": max_fields}
        self._header, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._file_names = file_names
        self._headers: dict[bytes, bytes] = {}  # of the current part; names in lower case
        self._name = ""
        self._is_file, self._filename = False, b""

    def feed(self, boundary: bytes, body: bytes) -> None:
        parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
                "on_part_end": self._end_part,
                "on_end": self._end_form,
            },
        )
        for start in range(0, len(body), _CHUNK_BYTES):
            parser.write(body[start : start + _CHUNK_BYTES])

    def _begin_part(self) -> None:
        self._content = bytearray()
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._header.lower())] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition.strip() != b"form-data" or not options.get(b"name"):
            raise MalformedRequest("a multipart part has no Content-Disposition: form-data with a name")
        self._name = _utf8(options[b"name"], "a part's name")
        self._filename = options.get(b"filename", b"")
        # A file name is optional (RFC 7578, section 4.2), and programs often send an image from memory without one.
        self._is_file = b"filename" in options or self._headers.get(b"content-type", b"").lower().startswith(b"image/")
        part_type = "files" if self._is_file else "fields"
        self._remaining[part_type] -= 1
        if self._remaining[part_type] < 0:
            raise InvalidContent.field(printable_name(self._name), f"too many {part_type} in the form")

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name].append(self._text())
        elif self._filename or self._content:
            self.files[self._name].append(bytes(self._content))

    def _text(self) -> str:
        try:
            return _utf8(self._content, printable_name(self._name))
        except MalformedRequest as exc:
            if self._name in self._file_names:  # an image whose program named no file, or named it with `filename*`
                raise InvalidContent.field(self._name, MUST_BE_A_FILE) from exc
            raise

    def _end_form(self) -> None:
        self.complete = True


def _utf8(data: bytes | bytearray, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"{name}: not UTF-8") from exc


def parse_fields(fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Convert one text for each field by the type of the option; raises `InvalidContent` for those given twice.

    Other fields, and text that cannot be converted, stay text. Validation rejects it later with the name of the field.
    """
    if repeated := [printable_name(name) for name, texts in fields.items() if len(texts) != 1]:
        message = "given more than once"
        raise InvalidContent(f"{', '.join(repeated)}: {message}", fields=[(name, message) for name in repeated])
    return {name: _CONVERTERS.get(name, str)(texts[0]) for name, texts in fields.items()}


def parse_query(query: bytes, path: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The options in a query, and in the parameters of a ``path``, as `parse_fields` converts them."""
    fields: dict[str, list[str]] = {}
    for name, value in (*(path or {}).items(), *QueryParams(query).multi_items()):
        fields.setdefault(name, []).append(value)
    return parse_fields(fields)


def _integer(text: str) -> object:
    return int(text) if _INTEGER.fullmatch(text) else text


def _number(text: str) -> object:
    return float(text) if _NUMBER.fullmatch(text) else text


def _boolean(text: str) -> object:
    return _BOOLEANS.get(text.lower(), text)


def _integers(text: str) -> object:
    return [_integer(part.strip()) for part in text.split(",", 64)]


_CONVERTERS: Final[dict[str, Callable[[str], object]]] = {
    **dict.fromkeys(("n", "steps", "offset", "width", "height", "scale", "columns", "gap", "frames", "fps"), _integer),
    **dict.fromkeys(("partial_images", "output_compression"), _integer),
    **dict.fromkeys(("tolerance", "strength", "noise_scale"), _number),
    **dict.fromkeys(("score", "invert", "loop", "stream"), _boolean),
    "record": _integers,
}
