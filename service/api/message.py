"""The head and the body of a request: what a head may be (RFC 9112, sections 3.2 and 6), the body
as JSON or `multipart/form-data`, and options that arrive as text in a form or in a query.

A body with a syntax error raises `MalformedRequest` (400). A well-formed body with an invalid value
raises `InvalidContent` (422), which names the field. The parsers are synchronous: large bodies are
parsed in the codec pool.

Starlette's `request.form()` cannot keep the contract: it treats an image without a file name as
text, decodes text that is not UTF-8 as latin-1, accepts a body without its last boundary, and
answers too many files or fields with 400 and without a field name instead of 422.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from email.utils import parsedate
from functools import lru_cache
from math import isfinite
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import QueryParams
from starlette.types import Scope

from service.api.negotiation import Json
from service.api.problems import invalid_content
from service.domain.errors import (
    ForbiddenError,
    HeadTooLarge,
    IgnError,
    InvalidContent,
    MalformedRequest,
    NotSupported,
    UnsupportedMedia,
)

Body = TypeVar("Body", bound=BaseModel)
HeaderFields = Sequence[tuple[bytes, bytes]]

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
_MAX_BOUNDARY: Final = 256
_MAX_PART_HEAD: Final = 1 << 12  # bytes of the header fields of a part of a form
_MAX_ITEMS: Final = 64  # of a list; more are an error

# `json.dumps` would make an encoder for each call
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


class RequestHeaders(dict[bytes, str]):
    """The header fields of a request, by their names in lower case; of repeated ones the first
    value, all of them are in ``fields``.
    """

    def __init__(self, fields: HeaderFields) -> None:
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


def check_origin(headers: RequestHeaders, allowed: Collection[str]) -> None:
    """Raise `ForbiddenError` if a page of another site may have sent the request; browsers send
    some without asking.

    Its `Origin` must be the service's own or one of ``allowed``. Browsers say in `Sec-Fetch-Site`
    whether it is its own when they use https, or for localhost, so that a proxy may have changed
    `Host`.
    """
    origin = headers.get(b"origin")
    is_own = origin is None or origin.partition("://")[2] == headers.get(b"host")
    is_own = headers.get(b"sec-fetch-site", "none" if is_own else "") in ("same-origin", "none")
    if not is_own and origin not in allowed:
        raise ForbiddenError("pages of other sites may not send this (IGN_CORS_ORIGINS)")


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


@lru_cache(maxsize=256)
def parse_content_type(header: str | None) -> str:
    """The media type in a Content-Type header, in lower case; empty without a header."""
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


def check_count(field: str, count: int, limit: int) -> None:
    """Raise `InvalidContent` for ``field``, of a list `images.3` for the whole of it, if ``count``
    is above ``limit``.
    """
    if count > limit:
        raise InvalidContent.field(field.partition(".")[0], f"at most {limit} are allowed")


def printable_name(name: str) -> str:
    """A field name from the request as an error may repeat it: at most 200 characters, no lone
    surrogates.
    """
    return name[:_MAX_NAME].encode("utf-8", "replace").decode()


def parse_multipart(
    content_type: str,
    body: bytes,
    *,
    max_files: int,
    max_fields: int,
) -> tuple[list[tuple[str, bytes]], dict[str, list[bytes]]]:
    """Split a `multipart/form-data` body into fields, as pairs of name and value, and files, as a
    mapping from name to values in order.

    A part with a file name, or with the content type of an image, is a file. Every other part is a
    field. An empty field, and a file part without name and content, are skipped: browsers send them
    for inputs that were left empty.

    Raises `MalformedRequest` without a first or last boundary, or for a part without a name, and
    `InvalidContent` for too many files or fields.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise MalformedRequest("Content-Type: the boundary is missing or too long")
    fields: list[tuple[str, bytes]] = []
    files: dict[str, list[bytes]] = {}
    left = {"files": max_files, "fields": max_fields}
    # A line break belongs to the boundary that follows it. One before the first may be missing.
    delimiter = b"\r\n--" + boundary
    preamble, *parts = body.split(delimiter, max_files + max_fields + 1)
    if preamble.startswith(delimiter[2:]):
        parts.insert(0, preamble[len(delimiter) - 2 :])
    # Each part is let go once it is read, so that a body is held twice at most.
    while parts:
        part = parts.pop(0)
        if part.startswith(b"--"):
            return fields, files
        name, filename, content = _parse_part(part)
        kind = "fields" if filename is None else "files"
        left[kind] -= 1
        if left[kind] < 0:
            raise InvalidContent.field(printable_name(name), f"too many {kind} in the form")
        if filename is None and content:
            fields.append((name, content))
        elif filename or content:
            files.setdefault(name, []).append(content)
    raise MalformedRequest("the body is not multipart/form-data that ends with its last boundary")


def _parse_part(part: bytes) -> tuple[str, bytes | None, bytes]:
    """Name, file name and content of a part; a field has no file name, and a file may have an empty
    one.
    """
    end = part.find(b"\r\n\r\n", 0, _MAX_PART_HEAD)
    before, *lines = part[: max(end, 0)].split(b"\r\n")
    headers = {name.lower(): value for name, _, value in [line.partition(b":") for line in lines]}
    disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
    if before.strip() or disposition.strip() != b"form-data" or not options.get(b"name"):
        raise MalformedRequest("a multipart part has no Content-Disposition: form-data with a name")
    # A file name is optional (RFC 7578, section 4.2), and programs often send an image from memory
    # without one.
    is_image = headers.get(b"content-type", b"").strip().lower().startswith(b"image/")
    filename = options.get(b"filename", b"" if is_image else None)
    return decode_utf8(options[b"name"], "a part's name"), filename, part[end + 4 :]


def decode_utf8(data: bytes, name: str) -> str:
    """A text; raises `MalformedRequest` with the name of what it is."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"{name}: not UTF-8") from exc


def parse_options(pairs: Sequence[tuple[str, str]]) -> Json:
    """Options by name, for a schema that is not strict; raises `InvalidContent` for those given
    twice.
    """
    options: Json = dict(pairs)
    if len(options) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = [printable_name(name) for name, count in counts.items() if count > 1]
        message = "given more than once"
        raise InvalidContent(
            f"{', '.join(repeated)}: {message}", fields=[(name, message) for name in repeated]
        )
    if "record" in options:  # the only list
        options["record"] = options["record"].split(",", _MAX_ITEMS)
    return options


def parse_query(query: bytes, path: Mapping[str, str] = MappingProxyType({})) -> Json:
    """The options in a query, and in the parameters of a ``path``, as `parse_options` has them."""
    return parse_options((*path.items(), *QueryParams(query).multi_items()))
