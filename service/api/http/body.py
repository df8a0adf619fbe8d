"""Request bodies: read within a byte cap and a deadline, then parsed strictly.

Whatever arrives broken is `MalformedRequest` (400); whatever is well-formed but holds an unusable field is
`InvalidContent` (422) naming it. A client that leaves raises Starlette's `ClientDisconnect`, which
`service.api.middleware.access_log` records as 499. The parsers are plain functions of bytes: for large bodies, call them in a
thread.
"""

import asyncio
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.domain.errors import BodyTooSlow, InvalidContent, MalformedRequest, TooLarge, UnsupportedMedia

MAX_DEPTH: Final = 32
"""Objects and arrays of a JSON body nest at most this deep."""

_MAX_NAME: Final = 200  # characters of a caller's field name that an error repeats
_PIECE: Final = 1 << 16  # bytes given to the multipart parser at once
_PLAIN: Final = frozenset(("application/json", "image/png", "image/jpeg", "image/webp"))  # need no parsing
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, deadline: float, encoded: bool = False) -> bytes:
    """Read the whole body.

    Args:
        scope: the request's ASGI scope.
        receive: the request's ASGI channel, unread so far.
        max_bytes: largest body accepted, counted on bytes received; a larger Content-Length is refused unread.
        deadline: `time.monotonic()` time by which the last byte must be here.
        encoded: hand a body with a Content-Encoding over as it is, instead of refusing it.

    Raises:
        UnsupportedMedia: the body has a Content-Encoding.
        TooLarge: more than ``max_bytes``.
        BodyTooSlow: the deadline passed.
        ClientDisconnect: the client left first.
    """
    headers = Headers(scope=scope)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if not encoded and coding not in ("", "identity"):
        raise UnsupportedMedia("Content-Encoding: bodies must be sent without one")
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await _receive_all(receive, max_bytes)
    except TimeoutError as exc:
        raise BodyTooSlow("the body did not arrive in time") from exc


async def _receive_all(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes")


def media_type(header: str | None) -> tuple[str, dict[str, str]]:
    """A Content-Type header as lower-case type and its parameters; an absent one is ``("", {})``."""
    if header in _PLAIN:
        return header, {}
    kind, options = parse_options_header(header)
    return kind.decode("latin-1").strip(), {
        name.decode("latin-1"): value.decode("latin-1") for name, value in options.items()
    }


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object, strictly: every key once, every number finite, every string valid Unicode.

    Raises:
        MalformedRequest: not UTF-8, not JSON, NaN or Infinity, or nested deeper than `MAX_DEPTH`.
        InvalidContent: not an object, a key given twice, a number beyond float64 (1e400), half a surrogate pair.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedRequest("the body is not UTF-8") from exc
    value = _decode(text)
    if not isinstance(value, dict):
        raise InvalidContent.field("body", "must be a JSON object")
    _check(value)
    return value


def _decode(text: str, parse_int: Callable[[str], float] = int) -> Any:
    try:
        return json.loads(text, parse_int=parse_int, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc.msg} at character {exc.pos}") from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError:
        # An integer of thousands of digits, which Python refuses to convert. As a float it is infinite, and the
        # check that follows names its place.
        return _decode(text, float)


def _refuse_constant(name: str) -> Any:
    raise MalformedRequest(f"the body is not JSON: {name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidContent.field(_shown(twice), "given twice")
    for key in found:
        if fault := _fault(key):
            raise InvalidContent.field(_shown(key), fault)
    return found


_Trail = tuple["_Trail", str | int] | None  # the way from the body to a node, last step first


def _check(body: dict[str, Any]) -> None:
    # A stack instead of recursion, and no place is spelled out before it is needed: OIP bodies hold 50 000 numbers.
    stack: list[tuple[dict[str, Any] | list[Any], _Trail, int]] = [(body, None, 1)]
    while stack:
        node, trail, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            kind = type(value)
            if kind is dict or kind is list:
                stack.append((value, (trail, key), depth + 1))
            elif fault := _fault(value):
                raise InvalidContent.field(_spell((trail, key)), fault)


def _fault(leaf: Any) -> str | None:
    if isinstance(leaf, float) and not math.isfinite(leaf):
        return "beyond the range of numbers"
    if isinstance(leaf, str) and not leaf.isascii() and _SURROGATE.search(leaf):
        return "holds half of a surrogate pair"
    return None


def _spell(trail: _Trail) -> str:
    parts: list[str] = []
    while trail is not None:
        trail, key = trail
        parts.append(str(key))
    return _shown(".".join(reversed(parts)))


def _shown(name: str) -> str:
    """A caller's field name as an error may repeat it: bounded, and free of half surrogate pairs."""
    return name[:_MAX_NAME].encode("utf-8", "replace").decode("utf-8")


def _too_deep() -> MalformedRequest:
    return MalformedRequest(f"the body nests deeper than {MAX_DEPTH} levels")


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
    form = _Form(max_files=max_files, max_fields=max_fields)
    try:
        form.feed(boundary.encode("latin-1"), body)
    except FormParserError as exc:
        raise MalformedRequest("the body is not valid multipart/form-data") from exc
    if not form.ended:
        raise MalformedRequest("the multipart body ends before its last boundary")
    return dict(form.fields), dict(form.files)


class _Form:
    """Gathers the parts that the multipart parser reports piece by piece."""

    def __init__(self, *, max_files: int, max_fields: int) -> None:
        self.fields: defaultdict[str, list[str]] = defaultdict(list)
        self.files: defaultdict[str, list[bytes]] = defaultdict(list)
        self.ended = False
        self._left = {"files": max_files, "fields": max_fields}
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
        for start in range(0, len(body), _PIECE):
            parser.write(body[start : start + _PIECE])

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
        self._left[what] -= 1
        if self._left[what] < 0:
            raise InvalidContent.field(_shown(self._name), f"too many {what} in the form")

    def _end(self) -> None:
        if not self._is_file:
            self.fields[self._name].append(_utf8(self._content, _shown(self._name)))
        elif self._filename or self._content:
            self.files[self._name].append(bytes(self._content))

    def _finish(self) -> None:
        self.ended = True


def _utf8(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"{what}: not UTF-8") from exc
