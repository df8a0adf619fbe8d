"""Decode untrusted bytes as PNG, JPEG or WebP. The first bytes decide the format, not a file name or media type.

This module calls Pillow's format classes instead of `Image.open`. `Image.open` tries every format, opens some JPEG
files as multi-picture files, and reports large pictures through `warnings`, which cannot be silenced for one thread.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.domain.errors import IgnError, InvalidContent, TooLarge
from service.images import png
from service.images.jpeg import needed_segments
from service.images.orientation import exif_transpose

# An empty progressive scan has 30 bytes, and decoding it visits all blocks (9 ms at 16 megapixels). Without a limit, a
# file of 16 MiB could occupy a core for an hour. Encoders write about ten scans. The limit for sequential files is
# higher: their cost grows with their size anyway, and phones append videos, which can contain the marker by chance.
_MAX_PROGRESSIVE_SCANS: Final = 100
_MAX_SEQUENTIAL_SCANS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """Limits on the size of a picture, in pixels.

    Args:
        max_pixels: of width × height.
        max_side: of width and of height.
    """

    max_pixels: int
    max_side: int = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture in 8 bit, upright.

    Args:
        image: mode L, LA, RGB or RGBA.
        stored_size: (width, height) in the file, before the transpose.
        transpose: the transpose that EXIF asked for and that was applied; None for none.
    """

    image: Image.Image
    stored_size: tuple[int, int]
    transpose: Image.Transpose | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        return self.image.size

    def __repr__(self) -> str:
        return f"<Picture {self.image.mode} {self.size[0]}×{self.size[1]}>"


def decode_picture(data: bytes, limits: DecodeLimits, *, field: str) -> Picture:
    """Decode the first frame as 8-bit grey or RGB, with or without alpha, and apply its EXIF orientation.

    16-bit samples v become rint(v / 257). ICC profiles are ignored. CMYK becomes RGB, a palette RGB or RGBA.

    Args:
        data: the file.
        limits: compared with the size in the header before any pixel is decoded.
        field: name of the field in errors.

    Raises:
        InvalidContent: not PNG, JPEG or WebP, truncated or damaged (code `undecodable_image`).
        TooLarge: larger than the limits (code `image_too_large`).
    """
    image, exif = decode_as_stored(data, limits, field=field)
    transpose = exif_transpose(exif)
    return Picture(image if transpose is None else image.transpose(transpose), image.size, transpose)


def decode_as_stored(data: bytes, limits: DecodeLimits, *, field: str) -> tuple[Image.Image, bytes]:
    """Decode like `decode_picture`, without the EXIF orientation.

    Returns:
        The picture as stored, and its EXIF block, which is empty if there is none.

    Raises:
        InvalidContent, TooLarge: as `decode_picture`.
    """
    with _map_decoder_errors(field):
        opened = _open(data)
        if opened is None:
            raise _undecodable(field, "is not a PNG, JPEG or WebP picture")
        _check_size(opened.size, limits, field)
        return opened.load(), opened.exif


def picture_pixels(data: bytes, limits: DecodeLimits, *, field: str) -> int:
    """The number of pixels that the header of a picture promises; 0 if it cannot be decoded.

    Raises:
        TooLarge: larger than the limits (code `image_too_large`).
    """
    try:
        with _map_decoder_errors(field):
            opened = _open(data)
            if opened is None:
                return 0
            _check_size(opened.size, limits, field)
            return opened.size[0] * opened.size[1]
    except InvalidContent:
        return 0


@dataclass(frozen=True, slots=True)
class _OpenedImage:
    size: tuple[int, int]  # (width, height) from the header
    exif: bytes
    load: Callable[[], Image.Image]


class _Jpeg(JpegImageFile):
    def getexif(self) -> Image.Exif:
        # Pillow calls this when it opens a file, to read the resolution, and warns if the EXIF block is damaged.
        return Image.Exif()


def _open(data: bytes) -> _OpenedImage | None:
    if data.startswith(png.SIGNATURE):
        parts, exif = png.image_chunks(data)
        if simple := png.simple_format(parts):
            return _OpenedImage(simple[1], exif, partial(png.load_simple, parts, *simple))
        chunks = b"".join(parts)
        image = png.open_png(chunks)
        return _OpenedImage(image.size, exif, partial(png.load_png, chunks, image))
    if data.startswith(b"\xff\xd8\xff"):
        return _open_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _open_webp(data)
    return None


def _open_jpeg(data: bytes) -> _OpenedImage:
    needed, exif = needed_segments(data)
    image = _Jpeg(io.BytesIO(needed))
    limit = _MAX_PROGRESSIVE_SCANS if "progressive" in image.info else _MAX_SEQUENTIAL_SCANS
    if needed.count(b"\xff\xda") > limit:
        raise ValueError("too many scans")
    return _OpenedImage(image.size, exif, partial(_load, image))


def _open_webp(data: bytes) -> _OpenedImage:
    # A chunk is: type, length of the content, content, and a byte of padding after an odd length.
    position, chunks = 12, 0
    while position + 8 <= len(data):
        chunks += 1
        if chunks > png.MAX_PARTS:
            raise ValueError("too many chunks")
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    image = WebPImageFile(io.BytesIO(data))
    return _OpenedImage(image.size, image.info.get("exif", b""), partial(_load, image))


def _load(image: ImageFile) -> Image.Image:
    image.load()
    return image.convert("RGB") if image.mode == "CMYK" else image


def _check_size(size: tuple[int, int], limits: DecodeLimits, field: str) -> None:
    width, height = size
    if max(size) > limits.max_side or width * height > limits.max_pixels:
        raise TooLarge(
            f"{field}: {width}×{height} pixels; the limit is {limits.max_pixels} pixels and {limits.max_side} a side",
            code="image_too_large",
        )


def _undecodable(field: str, message: str) -> InvalidContent:
    return InvalidContent.field(field, message, code="undecodable_image")


@contextmanager
def _map_decoder_errors(field: str) -> Iterator[None]:
    """Turn every exception of the decoders into an error of the request."""
    try:
        yield
    except (IgnError, MemoryError):
        raise
    except Image.DecompressionBombError as exc:
        raise TooLarge(f"{field}: too many pixels", code="image_too_large") from exc
    except Exception as exc:  # for hostile bytes Pillow's parsers raise nearly every built-in exception
        raise _undecodable(field, "is truncated or damaged, and cannot be decoded") from exc
