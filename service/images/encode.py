"""Encode 8-bit pixels as PNG, WebP, JPEG or TIFF without metadata, or as animations. Equal pixels
give equal bytes.

The PNG encoder is our own: it takes an eighth of Pillow's time for 28×28 grey, with files of the
same size.
"""

import binascii
import io
import math
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zlib_ng import zlib_ng as zlib

from service.artifact.card import Card
from service.artifact.pixels import to_levels
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Images
from service.images.decode import INCH_M, Dpi, Pixels
from service.images.prepare import as_pixels, background_levels
from service.images.untrusted import PNG_END, PNG_SIGNATURE, Size, png_chunk, png_header

Resample = Literal["nearest", "smooth"]
ImageFormat = Literal["png", "webp", "jpeg"]
AnimationFormat = Literal["webp", "gif", "apng"]

_MAX_SIDE: Final = {
    "webp": 16_383,
    "jpeg": 65_500,  # the limit of libjpeg; the file format allows 65 535
    "gif": 65_535,
}
# PNG filter types (ISO/IEC 15948, section 9)
_NO_FILTER = 0
_UP = 2
# PNG colour types
_GREY = 0
_RGB = 2


def to_uint8(rows: FloatRows, card: Card) -> Pixels:
    """Convert finite rows (…, C, H, W) to pixels (…, H, W) or (…, H, W, 3); values outside the
    range are clipped.
    """
    channels = to_levels(rows, *card.range)
    return (
        channels[..., 0, :, :]
        if rows.shape[-3] == 1
        else np.ascontiguousarray(np.moveaxis(channels, -3, -1))
    )


def enlarge(image: Pixels, scale: int, resample: Resample) -> Pixels:
    """Enlarge one image, (H, W[, 3]) → (scale·H, scale·W[, 3]): `nearest` makes pixels squares,
    `smooth` is Lanczos.
    """
    if scale == 1:
        return image
    size = (image.shape[1] * scale, image.shape[0] * scale)
    sampling = Image.Resampling.NEAREST if resample == "nearest" else Image.Resampling.LANCZOS
    return as_pixels(Image.fromarray(image).resize(size, sampling))


def sheet_size(n: int, cell: tuple[int, int], *, columns: int | None, gap: int) -> Size:
    """(width, height) in pixels of the contact sheet of `n` ≥ 1 images in cells of (H, W)
    pixels.
    """
    columns = min(columns, n) if columns else math.isqrt(n - 1) + 1  # ceil(√n) in integers
    rows = -(-n // columns)
    height, width = cell
    return columns * (width + gap) - gap, rows * (height + gap) - gap


def contact_sheet(
    images: Sequence[Pixels], card: Card, *, columns: int | None = None, gap: int = 0
) -> Pixels:
    """Combine N ≥ 1 images (H, W[, 3]), which may differ in size, row-major in cells that hold the
    largest: (rows·(H + gap) − gap, columns·(W + gap) − gap[, 3]).

    The background of the card fills what is empty. At most N ``columns`` are used, by default
    ceil(√N).
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    across, down = sheet_size(len(images), (height, width), columns=columns, gap=gap)
    sheet = np.empty((down, across, *images[0].shape[2:]), dtype=np.uint8)
    sheet[...] = background_levels(card)
    tops = range(0, down, height + gap)
    lefts = range(0, across, width + gap)
    for image, (top, left) in zip(images, product(tops, lefts), strict=False):
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def check_sides(file_format: str, width: int, height: int) -> None:
    """Raise InvalidContent (code `image_too_large`) if a side, in pixels, is longer than the format
    allows.
    """
    # no image in memory reaches the limit of PNG and APNG
    limit = _MAX_SIDE.get(file_format, math.inf)
    if max(width, height) > limit:
        raise InvalidContent(
            f"the answer would be {width}×{height} pixels, and {file_format} has at most "
            f"{limit} a side",
            code="image_too_large",
        )


def encode(pixels: Pixels, image_format: ImageFormat, dpi: Dpi | None = None) -> bytes:
    """As `encode_many`, for one image: uint8 (H, W) grey or (H, W, 3) RGB."""
    return encode_many(pixels[None], image_format, dpi)[0]


def encode_many(pixels: Pixels, image_format: ImageFormat, dpi: Dpi | None = None) -> list[bytes]:
    """Encode images as PNG at level 1, lossless WebP, or JPEG of quality 95 without chroma
    subsampling.

    ``pixels`` are uint8 (N, H, W) grey or (N, H, W, 3) RGB. PNG and JPEG state the ``dpi``, at most
    65 535 in a JPEG. Raises as `check_sides`.
    """
    if image_format == "png":
        return _pngs(pixels, dpi)
    check_sides(image_format, pixels.shape[2], pixels.shape[1])
    files: list[bytes] = []
    for picture in pixels:
        buffer = io.BytesIO()
        image = Image.fromarray(picture)
        if image_format == "webp":
            # `quality` of lossless WebP is the effort; 0 is 30 times as fast as the default and
            # gives 23 % more bytes.
            image.save(buffer, "WEBP", lossless=True, method=0, quality=0)
        else:
            density = tuple(min(each, 65_535) for each in dpi or (0, 0))
            image.save(buffer, "JPEG", quality=95, subsampling=0, dpi=density)
        files.append(buffer.getvalue())
    return files


def _pngs(pixels: Pixels, dpi: Dpi | None) -> list[bytes]:
    count, height, width = pixels.shape[:3]
    lines = pixels.reshape(count, height, -1)
    scanlines = np.empty((count, height, 1 + lines.shape[2]), dtype=np.uint8)
    if pixels.ndim == 3:
        scanlines[:, :, 0] = _NO_FILTER
        scanlines[:, :, 1:] = lines
    else:  # the difference to the line above
        scanlines[:, :, 0] = _UP
        scanlines[:, 0, 1:] = lines[:, 0]
        np.subtract(lines[:, 1:], lines[:, :-1], out=scanlines[:, 1:, 1:])
    head = PNG_SIGNATURE + png_header(width, height, _GREY if pixels.ndim == 3 else _RGB)
    if dpi is not None:
        across, down = (round(each / INCH_M) for each in dpi)
        head += png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    return [head + png_chunk(b"IDAT", _compress(content.data)) + PNG_END for content in scanlines]


def _compress(data: memoryview) -> bytes:
    # zlib-ng's quick method takes a fifth of zlib's time for 28×28 grey, with a tenth more bytes.
    # Larger images are compressed by runs: as small as with zlib, in two thirds of its time.
    if data.nbytes <= 1 << 14:
        return zlib.compress(data, 1)
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush()


def animate(
    frames: Pixels,
    animation_format: AnimationFormat,
    *,
    fps: float,
    scale: int = 1,
    resample: Resample = "nearest",
    check: Callable[[], None] = lambda: None,
) -> bytes:
    """Encode N ≥ 1 frames, uint8 (N, H, W) grey or (N, H, W, 3) RGB, as one animation; raises as
    `check_sides`.

    WebP and APNG are lossless. GIF keeps grey and reduces RGB to 256 colours per frame. ``check``
    is called before each frame is prepared; what it raises ends the work.
    """
    check_sides(animation_format, frames.shape[2] * scale, frames.shape[1] * scale)
    images = []
    for frame in frames:
        check()
        images.append(_frame(frame, animation_format, scale, resample))
    file_format = "PNG" if animation_format == "apng" else animation_format.upper()
    options: dict[str, Any] = {
        "duration": _durations(len(images), fps, tick=10 if animation_format == "gif" else 1),
        "loop": 0,  # without end
    }
    if animation_format == "webp":
        options |= {"lossless": True, "method": 0, "quality": 0}
    elif animation_format == "apng":
        options["compress_level"] = 1
    buffer = io.BytesIO()
    images[0].save(buffer, file_format, save_all=True, append_images=images[1:], **options)
    return buffer.getvalue()


def _frame(
    frame: Pixels, animation_format: AnimationFormat, scale: int, resample: Resample
) -> Image.Image:
    # A frame for GIF is enlarged after its palette is made: Pillow takes 40 times as long for an
    # enlarged one.
    if animation_format != "gif" or frame.ndim == 2 or scale == 1:
        return Image.fromarray(enlarge(frame, scale, resample))
    reduced = Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
    if resample == "nearest":
        return reduced.resize((frame.shape[1] * scale, frame.shape[0] * scale))
    return Image.fromarray(enlarge(frame, scale, resample)).quantize(
        palette=reduced, dither=Image.Dither.NONE
    )


def _durations(n: int, fps: float, tick: int) -> list[int]:
    # In ms: multiples of `tick`, so that frame k ends as near as possible to k / fps. 30 fps in
    # ticks of 10 ms is 30, 40, 30, 30, 40, 30…: rounding errors do not accumulate.
    ends = [round(k * 1000 / fps / tick) * tick for k in range(n + 1)]
    return [end - start for start, end in pairwise(ends)]


def encode_npy(rows: FloatRows) -> bytes:
    """Write rows (N, C, H, W), or one row (C, H, W), as `.npy`: little-endian float32, C order, not
    clipped.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rows, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()


def encode_tiff(rows: Images, card: Card) -> bytes:
    """Encode rows (C, H, W) as a TIFF with a page for each, compressed with Deflate: grey of 16
    bits, or RGB of 8.

    A grey level is rint((v − lo) · 65535 / (hi − lo)) of a value v, clipped.
    """
    lo, hi = card.range

    def deep(row: FloatRow) -> NDArray[np.uint16]:
        levels = np.rint((row[0].astype(np.float64) - lo) * 65_535 / (hi - lo)).clip(0, 65_535)
        return np.asarray(levels, dtype=np.uint16)

    first, *others = (
        Image.fromarray(deep(row) if len(row) == 1 else to_uint8(row, card)) for row in rows
    )
    buffer = io.BytesIO()
    first.save(
        buffer, "TIFF", save_all=True, append_images=others, compression="tiff_adobe_deflate"
    )
    return buffer.getvalue()


def encode_base64(data: bytes) -> str:
    """Encode as standard, padded base64 on one line."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")
