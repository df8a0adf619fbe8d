"""The head and the body of a request: what a head may be (RFC 9112, sections 3.2 and 6), and the
body as JSON.

A JSON body with a syntax error raises `MalformedRequest` (400). A well-formed body with an invalid
value raises `InvalidContent` (422), which names the field. The parsers are synchronous: large
bodies are parsed in the codec pool.
"""

import json
from collections.abc import Mapping, Sequence
from email.utils import parsedate
from math import isfinite
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.types import Scope

from service.api.negotiation import Json
from service.api.problems import invalid_content
from service.domain.errors import (
    HeadTooLarge,
    IgnError,
    InvalidContent,
    MalformedRequest,
    NotSupported,
    UnsupportedMedia,
)

Body = TypeVar("Body", bound=BaseModel)

# request line and headers; also trailers, and the extensions of one chunk
MAX_HEAD_BYTES: Final = 1 << 14
MAX_HEADERS: Final = 128
MAX_QUERY_BYTES: Final = 1 << 12
MAX_CONTENT_TYPE: Final = 256  # bytes; the boundary of a form has at most 70
MAX_PIPELINED: Final = 64  # requests that wait on one connection for the response before theirs
# ASGI extension of `service.server`: sends a whole response at once
WHOLE_RESPONSE: Final = "ign.http.response"

MAX_DEPTH: Final = 32  # of nested objects and arrays in a JSON body
MAX_VALUES: Final = 200_000
"""Most values in a JSON body, objects and arrays included. Parsing and rejecting one takes about 1
µs and 200 bytes, so 16 MiB of empty objects would take many seconds and a gigabyte. The largest
request has one image for each of at most 65 536 images. Bodies of the Open Inference Protocol hold
more numbers; `service.api.oip.tensors` adds them.
"""

MIN_HELD: Final = 1 << 13  # bytes; fewer are not worth counting: 1024 requests hold 8 MiB of them
_MAX_NAME: Final = 200  # characters of a field name from the request that an error repeats
# The usual values of Content-Type. They have no parameters, so they need no parser.
_PARAMETERLESS: Final = frozenset(("application/json", "image/png", "image/jpeg", "image/webp"))

# `json.dumps` would make an encoder for each call
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


class RequestHeaders(dict[bytes, str]):
    """The header fields of a request, by their names in lower case; of repeated ones the first
    value, all of them are in ``fields``.
    """

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__([(name, value.decode("latin-1")) for name, value in reversed(fields)])
        self.fields = fields

    def getlist(self, name: bytes) -> list[str]:
        """Every value of a field, in order."""
        return [value.decode("latin-1") for each, value in self.fields if each == name]


def is_known(headers: Mapping[str, str], request: RequestHeaders) -> bool:
    """Whether the caller of a request has the response with these headers (RFC 9110, section
    13.2.2).
    """
    if tags := ",".join(request.getlist(b"if-none-match")):
        # weak comparison (section 13.1.2)
        known = {tag.strip(" \t").removeprefix("W/") for tag in tags.split(",")}
        return not known.isdisjoint({"*", headers["ETag"].removeprefix("W/")})
    since = parsedate(request.get(b"if-modified-since"))
    changed = parsedate(headers.get("Last-Modified"))
    return since is not None and changed is not None and since >= changed


def check_head_size(size: int, count: int) -> None:
    """Raise `HeadTooLarge` for a head of more than 16 KiB or 128 headers."""
    if size > MAX_HEAD_BYTES or count > MAX_HEADERS:
        raise HeadTooLarge(
            f"the head of the request is larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} "
            f"headers"
        )


def check_head(scope: Scope, headers: RequestHeaders) -> IgnError | None:
    """What is wrong with a parsed head, if anything. The parser has checked `Content-Length`."""
    http_version = scope["http_version"]
    if len(scope["query_string"]) > MAX_QUERY_BYTES:
        return HeadTooLarge(f"the query is longer than {MAX_QUERY_BYTES} bytes")
    if len(headers.get(b"content-type", "")) > MAX_CONTENT_TYPE:
        return UnsupportedMedia(f"Content-Type: longer than {MAX_CONTENT_TYPE} bytes")
    if http_version not in ("1.1", "1.0"):
        return MalformedRequest("the request is not HTTP/1.1")
    if b"host" not in headers and http_version == "1.1":
        return MalformedRequest("Host: send this header once")
    if len(headers) < len(headers.fields) and (error := _check_repeated(headers)):
        return error
    if b"transfer-encoding" in headers:
        return _check_transfer_encoding(http_version, headers)
    return None


def _check_repeated(headers: RequestHeaders) -> IgnError | None:
    for once, error in ((b"host", MalformedRequest), (b"content-encoding", UnsupportedMedia)):
        if len(headers.getlist(once)) > 1:
            return error(f"{once.decode().title()}: send this header once")
    return None


def _check_transfer_encoding(http_version: str, headers: RequestHeaders) -> IgnError | None:
    if http_version == "1.0":
        return MalformedRequest("Transfer-Encoding: not defined in HTTP/1.0")
    values = headers.getlist(b"transfer-encoding")
    if [value.strip().lower() for value in values] != ["chunked"]:
        return NotSupported("Transfer-Encoding: only chunked is supported")
    return None


def parse_as(schema: type[Body], body: bytes, *, max_values: int = MAX_VALUES) -> Body:
    """A JSON body as ``schema``; an empty body counts as `{}`. Raises `InvalidContent`, and as
    `parse_json`.
    """
    try:
        return schema.model_validate(parse_json(body, max_values=max_values) if body else {})
    except ValidationError as exc:
        # Formatted here, in the codec pool: a large body can hold 100 000 errors.
        raise invalid_content(exc) from exc


def compact_json(value: object) -> bytes:
    """JSON in ASCII without spaces."""
    return _COMPACT.encode(value).encode("ascii")


def parse_content_type(header: str | None) -> str:
    """The media type in a Content-Type header, in lower case; empty without a header."""
    if header in _PARAMETERLESS:
        return header
    return parse_options_header(header)[0].decode("latin-1").strip()


def parse_json(body: bytes, *, max_values: int = MAX_VALUES) -> Json:
    """Parse a JSON object with a limited number of values; if a key occurs twice, its last value
    counts.

    Raises `MalformedRequest` if it is not UTF-8, not JSON, has NaN or Infinity, or nests deeper
    than `MAX_DEPTH`; and `InvalidContent` if it is not an object, has too many values, or a number
    beyond float64 (1e400).
    """
    # A container begins with a bracket, and a comma precedes every other value but the first of its
    # container. Those inside strings count, too: base64 has none, and a data URL has one comma.
    if len(body) > max_values and sum(map(body.count, (b"{", b"[", b","))) > max_values:
        raise InvalidContent.field("body", f"holds more than {max_values} values")
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidContent.field("body", "must be a JSON object")
    _check_values(value)
    return value


def _check_values(node: Json | list[Any], path: str = "", depth: int = 1) -> None:
    """Raise if containers nest too deep or a number is infinite; ``path`` is that of the
    container.
    """
    if depth > MAX_DEPTH:
        raise MalformedRequest(f"the body nests deeper than {MAX_DEPTH} levels")
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        value_type = type(value)
        if value_type is dict or value_type is list:
            _check_values(value, f"{path}{str(key)[:_MAX_NAME]}."[:_MAX_NAME], depth + 1)
        elif value_type is float and not isfinite(value):
            raise InvalidContent.field(
                printable_name(f"{path}{key}"), "beyond the range of numbers"
            )


def printable_name(name: str) -> str:
    """A field name from the request as an error may repeat it: at most 200 characters, no lone
    surrogates.
    """
    return name[:_MAX_NAME].encode("utf-8", "replace").decode("utf-8")
