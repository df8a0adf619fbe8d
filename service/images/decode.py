"""Decode untrusted bytes as PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF; the first bytes decide which.
Decode `.npy`, too.

    ImageBytes ────────── open, pages ──▶ EncodedImage ── decode ──▶ Picture
    bytes or base64 text, the header: its size,           the pixels:
    opaque                up to milliseconds              up to seconds

What opens or decodes runs in a thread of the codec pool. Only a small PNG of exactly the model's
size, `ImageBytes.is_png_of`, is decoded anywhere.

This module calls Pillow's format classes instead of `Image.open`. `Image.open` tries every format,
opens some JPEG files as multi-image files, and reports large images through `warnings`, which
cannot be silenced for one thread.
"""

import ctypes
import io
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import pyspng
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageChops, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.artifact.files import read_npy
from service.domain.errors import IgnError, InvalidContent, TooLarge
from service.domain.latents import MAX_MAGNITUDE, FloatRow, is_bounded
from service.domain.tiles import MAX_SIDE
from service.images import untrusted
from service.images.formats import (
    ORIENTATION,
    TIFF_STARTS,
    TRANSPOSES,
    TiffPage,
    avif_still,
    exif_transpose,
    gif_first_frame,
    tiff_pages,
)
from service.images.untrusted import Size

_TURNED: Final = (  # which exchange width and height
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
_CONVERTED: Final = {
    "1": "L",
    "La": "LA",
    "P": "RGB",
    "PA": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "RGBa": "RGBA",
}
INCH_M: Final = 0.0254

with suppress(ImportError):  # a build of Pillow without AVIF
    from PIL import _avif
# LibTIFF writes a line to stderr for every damaged line of an image
with suppress(OSError, AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


Pixels = NDArray[np.uint8]  # (…, H, W) grey or (…, H, W, 3) RGB
Dpi = tuple[float, ...]  # horizontal and vertical

_one_large = threading.Lock()


@contextmanager
def memory_for(pixels: int) -> Iterator[None]:
    """Decode and prepare an image with this number of pixels in the block; of large ones, one at a
    time.

    That takes up to 18 bytes a pixel, 690 MiB at 40 megapixels, and of AVIF tiles of 12 bits up to
    30; and there is a thread for every core.
    """
    # two megapixels
    with _one_large if pixels > 1 << 21 else nullcontext():
        yield


class DecodeLimits(NamedTuple):
    """Limits on one image."""

    max_pixels: int  # width × height
    max_chars: int = 16 * 1024 * 1024  # of base64 text


# The first 33 bytes of a small PNG say its size, so no limit can reject it.
_SMALL: Final = DecodeLimits(max_pixels=untrusted.SMALL)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image."""

    image: Image.Image  # upright; mode L, LA, RGB or RGBA
    stored_size: Size  # (width, height) in the file, before the transpose
    transpose: Image.Transpose | None = None  # the one that EXIF asked for and that was applied

    @property
    def dpi(self) -> Dpi | None:
        """The resolution that a PNG or JPEG states."""
        dpi: Dpi = self.image.info.get("dpi", ())
        return dpi if dpi and all(dpi) else None


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """An image whose header is read. It holds the file, and after decoding also the pixels: drop it
    then.
    """

    field: str  # in errors
    stored_size: Size  # (width, height) in the header
    _transpose: Image.Transpose | None
    _load: Callable[[], Image.Image]

    @property
    def pixels(self) -> int:
        """Width × height."""
        return self.stored_size[0] * self.stored_size[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        width, height = self.stored_size
        return (width, height) if self._transpose in _TURNED else (height, width)

    def decode(self) -> Picture:
        """Decode the first frame as 8-bit grey or RGB, with or without alpha, and apply its
        orientation.

        16-bit samples v become rint(v / 257). ICC profiles are ignored. CMYK becomes RGB, a palette
        RGB or RGBA.

        Raises InvalidContent (`undecodable_image`) for a damaged file, and TooLarge for more pixels
        than the header says.
        """
        image = self.decode_as_stored()
        transpose = self._transpose
        return Picture(
            image if transpose is None else image.transpose(transpose), image.size, transpose
        )

    def decode_as_stored(self) -> Image.Image:
        """Decode without the orientation."""
        with _map_decoder_errors(self.field):
            return self._load()


@dataclass(slots=True, eq=False)
class ImageBytes:
    """An image file as it arrived, bytes or base64 text, which only a thread of the codec pool
    opens.
    """

    field: str  # in errors
    _data: bytes | str

    def __len__(self) -> int:
        """Bytes of the file, or characters of its text."""
        return len(self._data)

    @property
    def may_have_pages(self) -> bool:
        """Whether the file begins as a TIFF does, whose pages are images of their own."""
        data = self._data
        return (
            data.startswith(TIFF_STARTS)
            if isinstance(data, bytes)
            # base64 of II* and MM\0*, after white space, and `data:image/tiff;base64,`
            else re.search("SUkq|TU0A", data[:200]) is not None
        )

    def is_png_of(self, size: Size) -> bool:
        """Whether `decode_png` may decode it: a small PNG of this (width, height)."""
        return untrusted.is_png_of(self._data, size)

    def decode_png(self, channels: int) -> Picture | Pixels:
        """Decode an image for which `is_png_of` is true, in any thread; raises as
        `EncodedImage.decode`.

        Its pixels, (H, W) or (H, W, 3), if the file has so many ``channels`` and nothing but them.
        """
        content = self._bytes(_SMALL)
        if not untrusted.is_plain_png(content, channels):
            return self.open(_SMALL).decode()
        try:
            # One call of a library in C, without Pillow's chunk reader, which is Python.
            pixels: Pixels = pyspng.load(content)
        except RuntimeError:  # a damaged file, about which Pillow decides
            return self.open(_SMALL).decode()
        return pixels

    def pages(self, limits: DecodeLimits, most: int) -> list[EncodedImage]:
        """The pages of a TIFF, at most one more than ``most``, or the one image of another file; as
        `open`.
        """
        pages = list[TiffPage]()
        if self.may_have_pages:
            # A damaged file raises nearly any error, and `open` finds the text for it.
            with suppress(Exception):
                pages = list(islice(tiff_pages(self._bytes(limits)), most + 1))
        if len(pages) < 2:
            return [self.open(limits)]
        return [
            _checked(f"{self.field}.page.{number}", _opened_page(page), limits)
            for number, page in enumerate(pages)
        ]

    def _bytes(self, limits: DecodeLimits) -> bytes:
        data = self._data
        if isinstance(data, bytes):
            return data
        return untrusted.decode_base64(data, field=self.field, max_chars=limits.max_chars)

    def open(self, limits: DecodeLimits) -> EncodedImage:
        """Read the header of an image, so that its size is known before any pixel is decoded.

        Raises TooLarge beyond a limit, and InvalidContent for anything else than base64 (code
        `invalid_base64`) of a format that is decoded (`undecodable_image`).
        """
        content = self._bytes(limits)
        opener = _opener(content)
        if opener is None:
            text = "is not a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF image"
            if content.startswith(b"%PDF"):
                text = (
                    "is a PDF, which `ign project --local --model scans scan.pdf --out clean.pdf` "
                    "takes"
                )
            raise _invalid(self.field, text)
        with _map_decoder_errors(self.field):
            opened = opener(content)
        return _checked(self.field, opened, limits)


def _checked(field: str, opened: "_Opened", limits: DecodeLimits) -> EncodedImage:
    size, transpose, load = opened
    width, height = size
    if max(size) > MAX_SIDE:
        limit = f"{MAX_SIDE} a side"
    elif width * height > limits.max_pixels:
        limit = f"{limits.max_pixels / 1e6:g} million"
    else:
        return EncodedImage(field, size, transpose, load)
    raise TooLarge(
        f"{field}: {width}×{height} pixels, at most {limit} are allowed: reduce the image",
        code="image_too_large",
    )


def _invalid(field: str, message: str, code: str = "undecodable_image") -> InvalidContent:
    return InvalidContent.field(field, message, code=code)


# size in the header, what makes the image upright, decoder
_Opened = tuple[Size, Image.Transpose | None, Callable[[], Image.Image]]


def is_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is decoded."""
    return _opener(data) is not None


def _opener(data: bytes) -> Callable[[bytes], _Opened] | None:
    return next((opener for pattern, opener in _SIGNATURES if re.match(pattern, data)), None)


def _open_webp(data: bytes) -> _Opened:
    untrusted.check_webp_chunks(data)
    image = WebPImageFile(io.BytesIO(data))
    return image.size, exif_transpose(image.info.get("exif", b"")), partial(_load, image)


def _open_gif(data: bytes) -> _Opened:
    size, first = gif_first_frame(data)
    return size, None, lambda: _load(GifImageFile(io.BytesIO(first)))


def _open_bmp(data: bytes) -> _Opened:
    image = BmpImageFile(io.BytesIO(data))
    # none, and none with masks of bits; Pillow decodes run lengths in Python
    if image.info["compression"] not in (0, 3):
        raise untrusted.Unsupported(
            "is a BMP with run lengths; save it without compression, or as PNG"
        )
    return image.size, None, partial(_load, image)


def _open_avif(data: bytes) -> _Opened:
    if not AvifImagePlugin.SUPPORTED:
        raise untrusted.Unsupported(
            "is an AVIF image, and this installation of Pillow cannot decode it"
        )
    still, largest, together = avif_still(data)
    # one thread: the codec pool has one for every core
    decoder = _avif.AvifDecoder(still, "auto", 1)
    size, _, mode, _, _, orientation, _ = decoder.get_info()
    pixels = size[0] * size[1]
    slack = 1 << 20  # pixels of frames beyond the image: tiles of a grid overlap its border
    if largest > pixels + slack or together > 4 * pixels + slack:
        raise ValueError("larger than it says")
    return (
        size,
        TRANSPOSES.get(orientation),
        lambda: Image.frombytes(mode, size, decoder.get_frame(0)[0]),
    )


def _open_tiff(data: bytes) -> _Opened:
    pages = list(tiff_pages(data))
    if len(pages) > 1:
        raise untrusted.Unsupported(f"is a TIFF of {len(pages)} pages, where one image is expected")
    return _opened_page(*pages)


def _opened_page(page: TiffPage) -> _Opened:
    return (
        page.size,
        TRANSPOSES.get(page.value(ORIENTATION, 1)),
        partial(_load_tiff, page),
    )


def _load_tiff(page: TiffPage) -> Image.Image:
    image = TiffImageFile(io.BytesIO(page.file()))
    if image.mode in ("I", "F", "LAB"):
        raise untrusted.Unsupported(
            "is a TIFF whose samples have no fixed scale; save it with 8 or 16 bits"
        )
    if not image.mode.startswith("I;16"):
        return _load(image)
    image.load()
    levels = Image.fromarray(untrusted.eight_bits(np.asarray(image)))
    # white is 0, and Pillow inverts images of up to 8 bits only
    return ImageChops.invert(levels) if page.value(PHOTOMETRIC_INTERPRETATION, 1) == 0 else levels


def _open_jpeg(data: bytes) -> _Opened:
    needed, exif = untrusted.jpeg_without_metadata(data)
    image = JpegImageFile(io.BytesIO(needed))
    # An empty progressive scan has 30 bytes, and decoding it visits all blocks (9 ms at 16
    # megapixels). Without a limit, a file of 16 MiB could occupy a core for an hour. Encoders write
    # about ten scans. The limit for sequential files is higher: their cost grows with their size
    # anyway, and phones append videos, which can contain the marker by chance.
    limit = 100 if "progressive" in image.info else 1000
    if needed.count(b"\xff\xda") > limit:
        raise ValueError("too many scans")
    return image.size, exif_transpose(exif), partial(_load, image)


def _load(image: ImageFile) -> Image.Image:
    image.load()
    # The resolution is no metadata of a person, and without it a scan has no size.
    if image.format not in ("PNG", "JPEG"):
        image.info.pop("dpi", None)
    mode = _CONVERTED.get(image.mode, image.mode)
    if "transparency" in image.info and mode in ("L", "RGB"):  # a level or a place in the palette
        mode += "A"
    return image if mode == image.mode else image.convert(mode)


def _open_png(data: bytes) -> _Opened:
    parts, others = untrusted.png_chunks(data)
    transpose = exif_transpose(others.get(b"eXIf", b""))
    chunks = b"".join(parts)
    image = PngImageFile(io.BytesIO(chunks))
    density = others.get(b"pHYs", b"")
    if len(density) == 9 and density[8] == 1:  # pixels per metre
        across, down = struct.unpack_from(">II", density)
        image.info["dpi"] = (across * INCH_M, down * INCH_M)
    raw = str(image.tile[0].args)
    if raw.endswith(";16B"):
        return image.size, transpose, partial(untrusted.load_sixteen_bit, chunks, image, raw)
    key = image.info.get("transparency")
    if isinstance(key, int):
        # The chunk tRNS holds the transparent colour as a raw sample; Pillow scales 2-bit and 4-bit
        # pixels to 8 bit.
        image.info["transparency"] = key * {"1": 255, "L;2": 85, "L;4": 17}.get(raw, 1)
    return image.size, transpose, partial(_load, image)


# The first bytes of each format; of a BMP they include the size of its header.
_SIGNATURES: Final = (
    (rb"\x89PNG\r\n\x1a\n", _open_png),
    (rb"\xff\xd8\xff", _open_jpeg),
    (rb"(?s)RIFF....WEBP", _open_webp),
    (rb"(?s)....ftypavi[fs]", _open_avif),
    (rb"(?s)BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", _open_bmp),
    (rb"GIF8[79]a", _open_gif),
    (rb"II\*\0|MM\0\*", _open_tiff),
)


@contextmanager
def _map_decoder_errors(field: str) -> Iterator[None]:
    error: IgnError = _invalid(field, "is truncated or damaged, and cannot be decoded")
    try:
        yield
    except (IgnError, MemoryError):
        raise
    # For hostile bytes Pillow's parsers raise nearly every built-in exception.
    except Exception as exc:
        if isinstance(exc, untrusted.Unsupported):
            error = _invalid(field, str(exc))
        elif isinstance(exc, Image.DecompressionBombError):
            error = TooLarge(f"{field}: too many pixels", code="image_too_large")
        # The cause loses its traceback: from Python 3.13 on, its frames and the cause are a cycle,
        # with the file.
        raise error from exc.with_traceback(None)


def decode_npy(data: bytes, shape: tuple[int, int, int], *, field: str) -> FloatRow:
    """Read one row (C, H, W) from a float32 `.npy` file, in either byte order, in C or Fortran
    order.

    Raises InvalidContent (code `invalid_npy`) for anything else, and for values that are NaN or
    beyond `MAX_MAGNITUDE`.
    """
    try:
        row = read_npy(data)
        if row.dtype.kind != "f" or row.dtype.itemsize != 4:
            raise ValueError("must be float32")
        if row.shape != shape:
            raise ValueError(f"must have shape {shape}")
        if not is_bounded(row):
            raise ValueError(f"must hold finite values within ±{MAX_MAGNITUDE:.0f}")
    except ValueError as exc:
        raise _invalid(field, str(exc), code="invalid_npy") from exc
    return np.array(row, dtype=np.float32, order="C")
