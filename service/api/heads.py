"""What the head of a request may be: its size, and the headers that frame it (RFC 9112, sections
3.2 and 6).
"""

from collections.abc import Sequence
from typing import Final

from starlette.types import Scope

from service.api.body import RequestHeaders
from service.domain.errors import (
    HeadTooLarge,
    IgnError,
    MalformedRequest,
    NotSupported,
    UnsupportedMedia,
)

# request line and headers; also trailers, and the extensions of one chunk
MAX_HEAD_BYTES: Final = 1 << 14
MAX_HEADERS: Final = 128
MAX_QUERY_BYTES: Final = 1 << 12
MAX_CONTENT_TYPE: Final = 256  # bytes; the boundary of a form has at most 70
MAX_PIPELINED: Final = 64  # requests that wait on one connection for the response before theirs
# ASGI extension of `service.server`: sends a whole response at once
WHOLE_RESPONSE: Final = "ign.http.response"
_VERSIONS: Final = ("1.1", "1.0")


def check_head_size(size: int, count: int) -> None:
    """Raise `HeadTooLarge` for a head of more than 16 KiB or 128 headers."""
    if size > MAX_HEAD_BYTES or count > MAX_HEADERS:
        raise HeadTooLarge(
            f"the head of the request is larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} "
            f"headers"
        )


def check_head(scope: Scope, headers: RequestHeaders) -> IgnError | None:
    """What is wrong with a parsed head, if anything. The parser has checked `Content-Length`."""
    names = headers.first
    http_version = scope["http_version"]
    if len(scope["query_string"]) > MAX_QUERY_BYTES:
        return HeadTooLarge(f"the query is longer than {MAX_QUERY_BYTES} bytes")
    if len(names.get(b"content-type", b"")) > MAX_CONTENT_TYPE:
        return UnsupportedMedia(f"Content-Type: longer than {MAX_CONTENT_TYPE} bytes")
    if http_version not in _VERSIONS:
        return MalformedRequest("the request is not HTTP/1.1")
    if b"host" not in names and http_version == "1.1":
        return MalformedRequest("Host: send this header once")
    if len(names) < len(headers.fields):
        for once, error in ((b"host", MalformedRequest), (b"content-encoding", UnsupportedMedia)):
            if len(headers.getlist(once)) > 1:
                return error(f"{once.decode().title()}: send this header once")
    encodings = headers.getlist(b"transfer-encoding")
    return _check_transfer_encoding(http_version, encodings) if encodings else None


def _check_transfer_encoding(http_version: str, values: Sequence[str]) -> IgnError | None:
    if http_version == "1.0":
        return MalformedRequest("Transfer-Encoding: not defined in HTTP/1.0")
    if [value.strip().lower() for value in values] != ["chunked"]:
        return NotSupported("Transfer-Encoding: only chunked is supported")
    return None
