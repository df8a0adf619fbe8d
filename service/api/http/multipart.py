"""Multipart forms."""

from collections import defaultdict
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.api.http.body import media_type, printable_name
from service.domain.errors import InvalidContent, MalformedRequest

_CHUNK_BYTES: Final = 1 << 16  # bytes given to the multipart parser at once


def parse_multipart(
    content_type: str, body: bytes, *, max_files: int, max_fields: int
) -> tuple[dict[str, list[str]], dict[str, list[bytes]]]:
    """A `multipart/form-data` body as fields and files, in memory, each name with all its values in order.

    A part with a file name or the content type of a picture is a file, any other a UTF-8 field. A file input left
    empty by a browser (no name, no bytes) is no part at all.

    Args:
        content_type: the request's Content-Type, with the boundary.
        body: the whole body.
        max_files: most files accepted.
        max_fields: most fields accepted.

    Raises:
        MalformedRequest: no boundary, no end, a part without a name, a field that is not UTF-8.
        InvalidContent: more files or fields than accepted.
    """
    boundary = media_type(content_type)[1].get("boundary", "")
    if not boundary:
        raise MalformedRequest("Content-Type: the boundary is missing")
    form = _MultipartParser(max_files=max_files, max_fields=max_fields)
    try:
        form.feed(boundary.encode("latin-1"), body)
    except FormParserError as exc:
        raise MalformedRequest("the body is not valid multipart/form-data") from exc
    if not form.ended:
        raise MalformedRequest("the multipart body ends before its last boundary")
    return dict(form.fields), dict(form.files)


class _MultipartParser:
    """Gathers the parts that the multipart parser reports piece by piece."""

    def __init__(self, *, max_files: int, max_fields: int) -> None:
        self.fields: defaultdict[str, list[str]] = defaultdict(list)
        self.files: defaultdict[str, list[bytes]] = defaultdict(list)
        self.ended = False
        self._remaining = {"files": max_files, "fields": max_fields}
        self._header, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}  # of the part, by name in lower case
        self._name = ""
        self._is_file, self._filename = False, b""

    def feed(self, boundary: bytes, body: bytes) -> None:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )
        for start in range(0, len(body), _CHUNK_BYTES):
            parser.write(body[start : start + _CHUNK_BYTES])

    def _begin(self) -> None:
        self._content = bytearray()
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._header.lower())] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind.strip() != b"form-data" or not options.get(b"name"):
            raise MalformedRequest("a multipart part has no Content-Disposition: form-data with a name")
        self._name = _utf8(options[b"name"], "a part's name")
        self._filename = options.get(b"filename", b"")
        # A file needs no name (RFC 7578, 4.2), and programs that hold a picture in memory have none to give.
        self._is_file = b"filename" in options or self._headers.get(b"content-type", b"").lower().startswith(b"image/")
        self._count("files" if self._is_file else "fields")

    def _count(self, what: str) -> None:
        self._remaining[what] -= 1
        if self._remaining[what] < 0:
            raise InvalidContent.field(printable_name(self._name), f"too many {what} in the form")

    def _end(self) -> None:
        if not self._is_file:
            self.fields[self._name].append(_utf8(self._content, printable_name(self._name)))
        elif self._filename or self._content:
            self.files[self._name].append(bytes(self._content))

    def _finish(self) -> None:
        self.ended = True


def _utf8(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"{what}: not UTF-8") from exc
