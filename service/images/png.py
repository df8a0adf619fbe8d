"""Decode PNG with Pillow, but with correct 16-bit samples and transparent colours.

Pillow keeps only the high byte of 16-bit colour, and clips 16-bit grey on conversion. Here every 16-bit sample v
becomes rint(v / 257). Pillow gets only the chunks of the first picture. Text, profiles and animation are skipped
without parsing, so that their size and their errors have no effect.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_KEPT: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_IHDR_START: Final = struct.pack(">I4s", 13, b"IHDR")
_IEND: Final = struct.pack(">4sI", b"IEND", zlib.crc32(b"IEND"))
_SIMPLE_MODES: Final = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # 8-bit mode by colour type
_MODES: Final = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of bands
# The chunk tRNS holds the transparent colour as a raw sample; Pillow scales 2-bit and 4-bit pixels to 8 bit.
_KEY_SCALE: Final = {"1": 1, "L;2": 85, "L;4": 17}

MAX_PARTS: Final = 10_000
"""Most chunks of a PNG or WebP, and most segments before the first scan of a JPEG. Reading one takes about 1 µs of
Python, in which no other thread runs, so 16 MiB of empty ones would take seconds. Encoders write chunks of 8 KiB, which
is 2000 in 16 MiB."""

Samples = NDArray[np.uint16]  # (H, W), one band


def image_chunks(data: bytes) -> tuple[list[bytes], bytes]:
    """Split a PNG file.

    Returns:
        The signature and the chunks of the first picture, in order; and the content of the chunk eXIf, or b"".

    Raises:
        ValueError: more than `MAX_PARTS` chunks, or an IHDR that is not the first of the chunks of the picture.
    """
    # Malformed lengths need no check here: slices end at the end of the data, and Pillow reports the damage.
    parts = [data[:8]]
    exif = b""
    start, size, chunks = 8, len(data), 0
    while start + 8 <= size:
        chunks += 1
        if chunks > MAX_PARTS:
            raise ValueError("too many chunks")
        chunk_type = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if chunk_type in _KEPT:
            # Pillow believes the last IHDR. All others here, who decide where to decode and how much, read the first.
            if chunk_type == b"IHDR" and len(parts) > 1:
                raise ValueError("more than one IHDR")
            parts.append(data[start:end])
        elif chunk_type == b"eXIf":
            exif = data[start + 8 : end - 4]
        if chunk_type == b"IEND":
            break
        start = end
    return parts, exif


def simple_format(parts: list[bytes]) -> tuple[str, tuple[int, int]] | None:
    """Mode and (width, height) of a PNG with 8 bits, without interlacing, palette and transparent colour.

    Args:
        parts: signature and chunks.

    Returns:
        None for every other PNG, and for one with malformed chunks.
    """
    head, data, end = parts[1] if len(parts) > 1 else b"", parts[2:-1], parts[-1]
    if not (
        head.startswith(_IHDR_START) and len(head) == 25 and zlib.crc32(head[4:21]) == int.from_bytes(head[21:], "big")
    ):
        return None
    if not data or end[4:] != _IEND or any(part[4:8] != b"IDAT" for part in data):
        return None
    width, height, depth, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", head[8:21])
    mode = _SIMPLE_MODES.get(colour)
    if mode is None or depth != 8 or compression or filters or interlaced or not (width and height):
        return None
    return mode, (width, height)


def load_simple(parts: list[bytes], mode: str, size: tuple[int, int]) -> Image.Image:
    """Decode a PNG for which `simple_format` returned ``mode`` and ``size``.

    The result is that of `load_png`. For small pictures it takes a third of the time, because it calls Pillow's
    decoder, which is C, without Pillow's chunk reader, which is Python. If the decoder fails, `load_png` decides.
    """
    try:
        return Image.frombytes(mode, size, b"".join([part[8:-4] for part in parts[2:-1]]), "zip", mode)
    except ValueError:
        chunks = b"".join(parts)
        return load_png(chunks, open_png(chunks))


def open_png(chunks: bytes) -> PngImageFile:
    """Read the header; pixels are decoded later."""
    return PngImageFile(io.BytesIO(chunks))


def load_png(chunks: bytes, image: PngImageFile) -> Image.Image:
    """Decode `image`, opened from `chunks`, as 8-bit L, LA, RGB or RGBA."""
    raw = str(image.tile[0].args)  # Pillow's name of the layout in the file, such as "RGB;16B"
    key = image.info.get("transparency")
    if raw.endswith(";16B"):
        return _eight_bits(_bands(chunks, image, raw), key)
    image.load()
    if image.mode == "P":
        return image.convert("RGB" if key is None else "RGBA")
    picture = image.convert("L") if image.mode == "1" else image
    if key is None:
        return picture
    scale = _KEY_SCALE.get(raw, 1)
    keys = key if isinstance(key, tuple) else (key * scale,)
    bands = [np.asarray(band) for band in picture.split()]
    return Image.merge(_MODES[len(bands) + 1], [*picture.split(), _alpha(bands, keys)])


def _load_raw(image: PngImageFile, rawmode: str) -> Image.Image:
    # The decoder undoes filters and interlacing with the number of bytes per pixel only. The raw mode then says which
    # bytes of a pixel it keeps, so another raw mode with the same number of bytes reads other bytes.
    image.tile = [image.tile[0]._replace(args=rawmode)]
    image.load()
    return image


def _bands(chunks: bytes, image: PngImageFile, raw: str) -> Iterator[Samples]:
    if raw == "I;16B":
        image.load()
        yield np.asarray(image)
        return
    if raw == "LA;16B":  # two bands of two bytes: read as four bands of one byte
        pixels = _load_raw(image, "RGBA").split()
        pairs = [(pixels[0], pixels[1]), (pixels[2], pixels[3])]
    else:
        # Pillow keeps the high byte of big-endian samples. Read as little-endian samples, it keeps the low byte.
        low = _load_raw(open_png(chunks), raw[:-1] + "L")
        pairs = list(zip(_load_raw(image, raw).split(), low.split(), strict=True))
    for high_byte, low_byte in pairs:
        yield (np.asarray(high_byte).astype(np.uint16) << 8) | np.asarray(low_byte)


def _eight_bits(bands: Iterator[Samples], key: int | tuple[int, ...] | None) -> Image.Image:
    samples = list(bands)
    # (v + 128) // 257 = rint(v / 257) for all v in 0…65535
    scaled = [Image.fromarray(((band.astype(np.uint32) + 128) // 257).astype(np.uint8)) for band in samples]
    if key is not None:
        scaled.append(_alpha(samples, key if isinstance(key, tuple) else (key,)))
    return Image.merge(_MODES[len(scaled)], scaled)


def _alpha(bands: list[NDArray[np.uint8]] | list[Samples], key: tuple[int, ...]) -> Image.Image:
    """The alpha band: 0 where every band equals the transparent colour, else 255."""
    hidden = np.ones(bands[0].shape, dtype=np.bool_)
    for band, value in zip(bands, key, strict=True):
        hidden &= band == value
    return Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255)))
