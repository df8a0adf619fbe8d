"""Content codings of the Open Inference Protocol: bodies inflated within a bound, answers deflated where asked."""

import gzip
import zlib
from typing import Final, Literal

from service.domain.errors import MalformedRequest, TooLarge, UnsupportedMedia

Coding = Literal["gzip", "deflate"]

_WINDOWS: Final[dict[str, int]] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # deflate is zlib: RFC 9110
_LEVEL: Final = 1  # float32 noise hardly compresses, whatever the effort


def content_encoding(header: str | None) -> Coding | None:
    """The coding a Content-Encoding names; None for none.

    Raises:
        UnsupportedMedia: any other, or several.
    """
    match (header or "identity").strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return "gzip"
        case "deflate":
            return "deflate"
    raise UnsupportedMedia("Content-Encoding: expected gzip, deflate or none")


def inflate(body: bytes, coding: Coding, max_bytes: int) -> bytes:
    """A coded body, as it was; never more than a byte above ``max_bytes`` is made of it.

    Raises:
        MalformedRequest: damaged, truncated, or followed by anything else.
        TooLarge: more than ``max_bytes``.
    """
    inflater = zlib.decompressobj(_WINDOWS[coding])
    try:
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error as exc:
        raise MalformedRequest(f"the body is not valid {coding}") from exc
    if len(inflated) > max_bytes:
        raise TooLarge(f"the inflated body is larger than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise MalformedRequest(f"the body is not one whole {coding} stream")
    return inflated


def accepted_encoding(header: str | None) -> Coding | None:
    """The coding an answer should have: that of an Accept-Encoding which names it and nothing else.

    HTTP libraries list what they know without being asked, and not all of their users undo it.
    """
    match (header or "").strip().lower():
        case "gzip":
            return "gzip"
        case "deflate":
            return "deflate"
    return None


def deflate(content: bytes, coding: Coding) -> bytes:
    """An answer in a coding."""
    if coding == "gzip":
        return gzip.compress(content, _LEVEL, mtime=0)
    return zlib.compress(content, _LEVEL)
