"""Read the structure of untrusted image files in bounded time, before Pillow sees them.

Pillow reads chunks and headers in Python: metadata of every kind, JPEG padding byte by byte, EXIF
blocks by appending each to the ones before. A hostile file of 16 MiB can so take seconds or
minutes. Here every chunk or segment is visited once, and only what decoding needs is passed on. The
size and the errors of text, profiles and animation have no effect.

    PNG   signature · (length 4, type 4, content, CRC 4)…       ISO/IEC 15948
    JPEG  SOI · (0xFF, code, length 2, content)… · SOS, scan…   ITU-T T.81, table B.1
    WebP  RIFF, length 4, WEBP · (type 4, length 4, content)…   RFC 9649
"""

import base64
import binascii
import io
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from zlib_ng import zlib_ng as zlib

from service.domain.errors import InvalidContent, TooLarge

Size = tuple[int, int]  # (width, height)

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
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
_ALONE: Final = {0x00, *range(0xD0, 0xD8)}
# libjpeg rejects them, too
_INVALID: Final = {*range(0x01, 0xC0), 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
# but APP0 (JFIF) and APP14 (Adobe), which say which colours are stored
_METADATA: Final = {*range(0xE1, 0xEE), 0xEF, _COMMENT}

_PNG_KEPT: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

SMALL: Final = 1 << 14
"""Bytes of a small PNG, and its pixels."""
_HEAD_BYTES: Final = 33  # signature and chunk IHDR
_COLOUR_TYPES: Final = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels

_STRIP: Final = 64  # lines that are converted at a time, to hold few temporary arrays

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
        # Encoders write about ten, and Pillow reads the tables in them in loops, too.
        if len(kept) > 64:
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
    for _ in range(MAX_PARTS + 1):
        if position + 8 > len(data):
            return
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2  # a byte of padding follows an odd length
    raise ValueError("too many chunks")


def is_png_of(data: bytes | str, size: Size) -> bool:
    """Whether bytes, or base64 text, are a PNG of at most 16 KiB and of exactly this (width,
    height), at most 128×128.

    Decoding it takes microseconds. The first 33 bytes decide: signature and IHDR of 8 bits, not
    interlaced. False for everything else, also for invalid images. The result decides where to
    decode, not whether.
    """
    if len(data) > SMALL or size[0] * size[1] > SMALL:
        return False
    if isinstance(data, str):
        text = data.partition(",")[2] if data.startswith("data:") else data
        try:
            data = base64.b64decode(text[: _HEAD_BYTES // 3 * 4], validate=True)
        except ValueError:  # white space, or not base64
            return False
    return data[:_HEAD_BYTES] in _png_heads(size)


@lru_cache(maxsize=64)
def _png_heads(size: Size) -> set[bytes]:
    return {PNG_SIGNATURE + png_header(*size, colour) for colour in _COLOUR_TYPES.values()}


def png_chunk(chunk_type: bytes, content: bytes) -> bytes:
    """Length of the content, type, content, CRC-32 of type and content."""
    checksum = zlib.crc32(content, zlib.crc32(chunk_type))
    return b"".join(
        (len(content).to_bytes(4, "big"), chunk_type, content, checksum.to_bytes(4, "big"))
    )


PNG_END: Final = png_chunk(b"IEND", b"")


def is_plain_png(data: bytes, channels: int) -> bool:
    """Whether a file for which `is_png_of` is true has so many channels, all in one undamaged
    chunk, and no others.
    """
    return (
        data[37:41] == b"IDAT"
        and 57 + int.from_bytes(data[33:37], "big") == len(data)
        and data[25] == _COLOUR_TYPES[channels]
        and data.endswith(PNG_END)
        and zlib.crc32(data[37:-16]) == int.from_bytes(data[-16:-12], "big")
    )


@lru_cache(maxsize=64)
def png_header(width: int, height: int, colour: int) -> bytes:
    """The chunk IHDR of an image with 8 bits and this colour type, not interlaced."""
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))


def png_chunks(data: bytes) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Split a PNG file: the signature and the chunks of the first image; and the contents of the
    chunks eXIf and pHYs.

    Raises ValueError for more than `MAX_PARTS` chunks, or an IHDR that is not the first of the
    chunks of the image.
    """
    # Malformed lengths need no check here: slices end at the end of the data, and Pillow reports
    # the damage.
    parts = [data[:8]]
    others: dict[bytes, bytes] = {}
    start = 8
    size = len(data)
    chunks = 0
    while start + 8 <= size:
        chunks += 1
        if chunks > MAX_PARTS:
            raise ValueError("too many chunks")
        chunk_type = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if chunk_type in _PNG_KEPT:
            # Pillow uses the last IHDR; `is_png_of` and the size limit use the first. Two different
            # ones would bypass the limit.
            if chunk_type == b"IHDR" and len(parts) > 1:
                raise ValueError("more than one IHDR")
            parts.append(data[start:end])
        elif chunk_type in (b"eXIf", b"pHYs"):
            others[chunk_type] = data[start + 8 : end - 4]
        if chunk_type == b"IEND":
            break
        start = end
    return parts, others


def eight_bits(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """rint(v / 257) of 16-bit samples v."""
    return (samples * np.float32(1 / 257) + np.float32(0.5)).astype(np.uint8)


def load_sixteen_bit(chunks: bytes, image: PngImageFile, raw: str) -> Image.Image:
    """Decode `image`, opened from ``chunks``, as 8-bit L, LA, RGB or RGBA; Pillow keeps only the
    high bytes, and clips grey. ``raw`` is its name of the layout in the file, such as `RGB;16B`.

    The conversion takes some lines at a time, because its arrays would take more memory than the
    image.
    """
    key: Any = image.info.get("transparency")
    # Two bands of two bytes are read as four bands of one byte. Of other colours Pillow keeps the
    # high byte of big-endian samples; read as little-endian samples, it keeps the low byte.
    sources = [_load_raw(image, "RGBA" if raw == "LA;16B" else raw)]
    if raw.startswith("RGB"):
        sources.append(_load_raw(PngImageFile(io.BytesIO(chunks)), raw[:-1] + "L"))
    # "I" stands for one, "LA", "RGB" and "RGBA" for as many as they have letters
    bands = len(raw.partition(";")[0]) + (key is not None)
    levels = np.full((image.height, image.width, bands), 255, np.uint8)
    for top in range(0, image.height, _STRIP):
        strip = levels[top : top + _STRIP]
        box = (0, top, image.width, top + len(strip))
        samples = _samples([np.asarray(source.crop(box)) for source in sources])
        strip[:, :, : samples.shape[2]] = eight_bits(samples)
        if key is not None:
            strip[:, :, -1][(samples == key).all(axis=2)] = 0
    decoded = Image.fromarray(levels.squeeze(2) if bands == 1 else levels)
    decoded.info["dpi"] = image.info.get("dpi", ())
    return decoded


def _samples(strips: list[NDArray[Any]]) -> NDArray[np.uint16]:
    """The samples (lines, W, bands) of grey, of grey with alpha, or of high and low bytes."""
    high, *low = strips
    if low:
        high = high.astype(np.uint16) << 8 | low[0]
    elif high.ndim == 3:
        high = high.view(">u2")
    return high if high.ndim == 3 else high[:, :, None]


def _load_raw(image: PngImageFile, rawmode: str) -> Image.Image:
    # The decoder undoes filters and interlacing with the number of bytes per pixel only. The raw
    # mode then says which bytes of a pixel it keeps, so another raw mode with the same number of
    # bytes reads other bytes.
    image.tile = [image.tile[0]._replace(args=rawmode)]
    image.load()
    return image
