"""Untrusted bytes → `Picture`: PNG, JPEG or WebP, and nothing else; the bytes decide, not their name or type.

Pillow's format classes are called directly. `Image.open` would warn about large pictures (and `warnings` cannot be
silenced for one thread alone), open JPEG as multi-picture files, and look at every format it knows.
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
from service.images.orientation import exif_transpose

# An empty progressive scan takes 30 bytes and a pass over all blocks (9 ms at 16 megapixels): without a bound, a 16 MiB
# file could keep a core busy for an hour. Encoders write about ten. Sequential scans pay for themselves in bytes, and
# may be followed by a phone's video, in which the marker turns up by chance.
_MAX_PROGRESSIVE_SCANS: Final = 100
_MAX_SEQUENTIAL_SCANS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """What one picture may be before it is decoded.

    Args:
        max_pixels: width × height.
        max_side: width, and height.
    """

    max_pixels: int
    max_side: int = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture, upright, in 8 bit.

    Args:
        image: mode L, LA, RGB or RGBA.
        stored: (width, height) in the file, before it was turned.
        turn: how it was turned upright; None if it was not.
    """

    image: Image.Image
    stored_size: tuple[int, int]
    transpose: Image.Transpose | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        return self.image.size

    def __repr__(self) -> str:
        return f"<Picture {self.image.mode} {self.size[0]}×{self.size[1]}>"


def decode_picture(data: bytes, limits: DecodeLimits, *, field: str) -> Picture:
    """Decode the first frame, turn it as its EXIF says, and bring it to 8-bit grey or RGB with or without alpha.

    16-bit samples become rint(v / 257); ICC profiles are ignored; CMYK becomes RGB, palettes RGB(A).

    Args:
        data: the file.
        limits: checked against the header, before any pixel is decoded.
        field: path of the field the bytes came in, for the error.

    Raises:
        InvalidContent: not PNG, JPEG or WebP, truncated or damaged (code `undecodable_image`).
        TooLarge: beyond the limits (code `image_too_large`).
    """
    image, exif = decode_as_stored(data, limits, field=field)
    transpose = exif_transpose(exif)
    return Picture(image if transpose is None else image.transpose(transpose), image.size, transpose)


def decode_as_stored(data: bytes, limits: DecodeLimits, *, field: str) -> tuple[Image.Image, bytes]:
    """The picture as `decode_picture` gives it, but as it lies in the file, and its EXIF block."""
    with _map_decoder_errors(field):
        opened = _open(data)
        if opened is None:
            raise _undecodable(field, "is not a PNG, JPEG or WebP picture")
        _check_size(opened.size, limits, field)
        return opened.load(), opened.exif


@dataclass(frozen=True, slots=True)
class _OpenedImage:
    size: tuple[int, int]  # known before pixels are decoded
    exif: bytes
    load: Callable[[], Image.Image]


class _Jpeg(JpegImageFile):
    def getexif(self) -> Image.Exif:
        # Opening asks for the resolution in EXIF, which nobody needs and which warns when EXIF is damaged.
        return Image.Exif()


def _open(data: bytes) -> _OpenedImage | None:
    if data.startswith(png.SIGNATURE):
        parts, exif = png.image_chunks(data)
        if plain := png.simple_format(parts):
            return _OpenedImage(plain[1], exif, partial(png.load_simple, parts, *plain))
        chunks = b"".join(parts)
        image = png.open_png(chunks)
        return _OpenedImage(image.size, exif, partial(png.load_png, chunks, image))
    if data.startswith(b"\xff\xd8\xff"):
        return _wrap_pillow(_open_jpeg(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _wrap_pillow(WebPImageFile(io.BytesIO(data)))
    return None


def _wrap_pillow(image: ImageFile) -> _OpenedImage:
    return _OpenedImage(image.size, image.info.get("exif", b""), partial(_load, image))


def _open_jpeg(data: bytes) -> ImageFile:
    image = _Jpeg(io.BytesIO(data))
    limit = _MAX_PROGRESSIVE_SCANS if "progressive" in image.info else _MAX_SEQUENTIAL_SCANS
    if data.count(b"\xff\xda") > limit:
        raise ValueError("too many scans")
    return image


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


def _undecodable(field: str, why: str) -> InvalidContent:
    return InvalidContent.field(field, why, code="undecodable_image")


@contextmanager
def _map_decoder_errors(field: str) -> Iterator[None]:
    """Turn whatever the decoders raise into the caller's error."""
    try:
        yield
    except (IgnError, MemoryError):
        raise
    except Image.DecompressionBombError as exc:
        raise TooLarge(f"{field}: too many pixels", code="image_too_large") from exc
    except Exception as exc:  # on hostile bytes Pillow's parsers raise nearly every built-in error
        raise _undecodable(field, "is truncated or damaged, and cannot be decoded") from exc
