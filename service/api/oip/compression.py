"""Content codings (gzip, deflate) of Open Inference Protocol requests and responses."""

import gzip
import zlib
from typing import Final, Literal

from service.domain.errors import MalformedRequest, TooLarge, UnsupportedMedia

Coding = Literal["gzip", "deflate"]

_WINDOWS: Final[dict[str, int]] = {
    "gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}  # "deflate" is the zlib format (RFC 9110, section 8.4.1.2)
_LEVEL: Final = 1  # float32 noise hardly compresses at any level


def content_encoding(header: str | None) -> Coding | None:
    """The coding that a Content-Encoding header names; None for identity or no header.

    Raises:
        UnsupportedMedia: another coding, or several.
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
    """Decompress a body; at most ``max_bytes`` + 1 bytes are allocated, so a bomb cannot fill the memory.

    Raises:
        MalformedRequest: damaged, truncated, or followed by other data.
        TooLarge: the decompressed body has more than ``max_bytes``.
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
    """The coding of the response: the one that Accept-Encoding names, if it names one coding only; else None.

    HTTP libraries list several codings by default, and not every program that uses one decompresses the response.
    """
    match (header or "").strip().lower():
        case "gzip":
            return "gzip"
        case "deflate":
            return "deflate"
    return None


def deflate(content: bytes, coding: Coding) -> bytes:
    """Compress a response body."""
    if coding == "gzip":
        return gzip.compress(content, _LEVEL, mtime=0)
    return zlib.compress(content, _LEVEL)
