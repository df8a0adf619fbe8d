"""What the head of a request may be, and the parser that reads it."""

from collections.abc import Sequence
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.domain.errors import HeadTooLarge, IgnError, MalformedRequest, NotSupported, UnsupportedMedia

MAX_HEAD_BYTES: Final = 1 << 16
"""Request line and headers; also trailers, and the extensions of one chunk."""
MAX_HEADERS: Final = 256
_VERSIONS: Final = ("1.1", "1.0")

Header = tuple[bytes, bytes]
"""Name in lower case, and value."""


def parse(protocol: HttpToolsProtocol, data: bytes) -> bool:
    """Feed the parser of a protocol; returns whether the data is HTTP.

    The parser takes what follows a head with `Upgrade` for another protocol. There is none, so a new parser gets such a
    head again without this header, and then the body (RFC 9110, section 7.8). The first time,
    `parser.should_upgrade()` tells the callbacks.
    """
    while data:
        try:
            protocol.parser.feed_data(data)
            return True
        except httptools.HttpParserError:
            return False
        except httptools.HttpParserUpgrade as exc:
            if protocol.parser.get_method() == b"CONNECT":
                return False
            data = _without_upgrade(protocol) + data[exc.args[0] :]
            protocol.parser = httptools.HttpRequestParser(protocol)
            protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
    return True


def _without_upgrade(protocol: HttpToolsProtocol) -> bytes:
    parser = protocol.parser
    line = b"%s %s HTTP/%s" % (parser.get_method(), protocol.url, parser.get_http_version().encode())
    fields = [b"%s: %s" % header for header in protocol.headers if header[0] != b"upgrade"]
    return b"\r\n".join((line, *fields, b"", b""))


def head_error(url: bytes, headers: Sequence[Header], version: str, received: int) -> IgnError | None:
    """What is wrong with a complete head, if anything (RFC 9112, sections 3.2 and 6.1).

    Args:
        url: the target.
        headers: in their order.
        version: of HTTP.
        received: number of bytes, not less than the head's.
    """
    names = [name for name, _ in headers]
    if received <= MAX_HEAD_BYTES and len(names) <= MAX_HEADERS and _is_usual(names, version):
        return None
    lengths = sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)
    if len(url) + lengths > MAX_HEAD_BYTES or len(names) > MAX_HEADERS:
        return head_too_large()
    if version not in _VERSIONS:
        return MalformedRequest("the request is not HTTP/1.1")
    if names.count(b"host") > 1 or (version == "1.1" and b"host" not in names):
        return MalformedRequest("Host: send this header once")
    if version == "1.0" and b"transfer-encoding" in names:
        return MalformedRequest("Transfer-Encoding: not defined in HTTP/1.0")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and codings != [b"chunked"]:
        return NotSupported("Transfer-Encoding: only chunked is supported")
    if names.count(b"content-encoding") > 1:
        return UnsupportedMedia("Content-Encoding: send this header once")
    return None


def _is_usual(names: list[bytes], version: str) -> bool:
    """Whether nothing can be wrong with headers of these names."""
    return (
        version in _VERSIONS
        and names.count(b"host") == 1
        and b"transfer-encoding" not in names
        and names.count(b"content-encoding") <= 1
    )


def head_too_large() -> HeadTooLarge:
    """The error for a head beyond its limits."""
    return HeadTooLarge(f"the head of the request is larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers")
