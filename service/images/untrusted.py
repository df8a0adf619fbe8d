"""Read the structure of untrusted image files in bounded time, before Pillow sees them.

Pillow reads chunks and headers in Python: metadata of every kind, JPEG padding byte by byte, EXIF
blocks by appending each to the ones before. A hostile file of 16 MiB can so take seconds or
minutes. Here every chunk or segment is visited once, and only what decoding needs is passed on. The
size and the errors of text, profiles and animation have no effect.

    JPEG  SOI · (0xFF, code, length 2, content)… · SOS, scan…   ITU-T T.81, table B.1
    WebP  RIFF, length 4, WEBP · (type 4, length 4, content)…   RFC 9649
"""

import binascii
import re
from collections.abc import Iterator
from typing import Final

from service.domain.errors import InvalidContent, TooLarge

# Most chunks of a PNG or WebP, and most segments before the first scan of a JPEG. Reading one takes
# about 1 µs of Python, in which no other thread runs, so 16 MiB of empty ones would take seconds.
# Encoders write 2000 in 16 MiB.
MAX_PARTS: Final = 10_000

EXIF: Final = b"Exif\0\0"
_PADDING = 0xFF
_SOS = 0xDA
_APP1 = 0xE1
_COMMENT = 0xFE
# without content: a stray 0x00, and RST0…RST7
_ALONE: Final = frozenset((0x00, *range(0xD0, 0xD8)))
# libjpeg rejects them, too
_INVALID: Final = frozenset((*range(0x01, 0xC0), 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)))
# APP0 (JFIF) and APP14 (Adobe) say which colours are stored
_JPEG_COLOURS: Final = frozenset((0xE0, 0xEE))
_METADATA: Final = frozenset((*range(0xE0, 0xF0), _COMMENT)) - _JPEG_COLOURS
# segments; encoders write about ten, and Pillow reads the tables in them in loops, too
_MAX_KEPT: Final = 64

_WHITE_SPACE: Final = b" \t\n\r\f\v"
_DATA_URL: Final = re.compile(rb"data:image/[^,;]{1,64}(?:;[^,;]{1,64})*;base64,", re.IGNORECASE)


class Unsupported(ValueError):
    """A file is not damaged, but of a kind that is not decoded; the text says which."""


def decode_base64(text: str, *, field: str, max_chars: int) -> bytes:
    """Decode standard, padded base64 (RFC 4648, section 4), without a prefix `data:image/…;base64,`
    and white space.

    Raises TooLarge if there are more than ``max_chars``, those included, and InvalidContent (code
    `invalid_base64`) for other text, such as URL-safe base64 and base64 without padding.
    """
    if len(text) > max_chars:
        raise TooLarge(f"{field}: {len(text)} characters of base64; the limit is {max_chars}")
    try:
        raw = text.encode("ascii").strip(_WHITE_SPACE)
        if prefix := _DATA_URL.match(raw):
            raw = raw[prefix.end() :]
        return binascii.a2b_base64(raw.translate(None, _WHITE_SPACE), strict_mode=True)
    except ValueError as exc:  # the base of UnicodeEncodeError and binascii.Error
        fetch = (
            ": URLs are never fetched, send the bytes"
            if text.lstrip().startswith(("http:", "https:"))
            else ""
        )
        raise InvalidContent.field(
            field, f"is not padded standard base64{fetch}", code="invalid_base64"
        ) from exc


def jpeg_without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG file without metadata and padding before its first scan; and its EXIF block, or b"".

    Raises ValueError for too many segments and bytes of padding, or a marker that cannot stand
    before the first scan.
    """
    kept = [data[:2]]
    exif = b""
    for code, segment in _jpeg_segments(data):
        if code not in _METADATA:
            kept.append(segment)
        elif code == _APP1 and not exif and segment.startswith(EXIF, 4):
            exif = segment[4:]
        if len(kept) > _MAX_KEPT:
            raise ValueError("too many segments that decoding needs")
    return b"".join(kept), exif


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    # The segments with content before the first scan, and then everything from that scan on: marker
    # and bytes.
    position = data.find(b"\xff", 2)
    for _ in range(MAX_PARTS):
        if not 0 < position < len(data) - 1:
            return  # no scan: Pillow reports it
        code = data[position + 1]
        end = position + 2
        if code == _SOS:
            yield code, data[position:]
            return
        if code in _INVALID:
            raise ValueError("unexpected marker")
        if code == _PADDING:
            end -= 1  # it may be the first byte of a marker
        elif code not in _ALONE:
            # the length counts its own two bytes
            end += max(2, int.from_bytes(data[end : end + 2], "big"))
            yield code, data[position:end]
        position = data.find(b"\xff", end)
    raise ValueError("too many segments")


def check_webp_chunks(data: bytes) -> None:
    """Raise ValueError if a WebP file has more than `MAX_PARTS` chunks; libwebp visits them all."""
    position = 12
    chunks = 0
    while position + 8 <= len(data):
        chunks += 1
        if chunks > MAX_PARTS:
            raise ValueError("too many chunks")
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2  # a byte of padding follows an odd length
