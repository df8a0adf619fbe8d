"""Cards and picture files for the image tests; PNG by hand where Pillow cannot write what is
needed.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.artifact.card import ModelCard
from service.images.decode import DecodeLimits, ImageBytes, Picture
from tests.helpers.onnx_models import make_card

LIMITS = DecodeLimits(max_pixels=1_000_000)
# PNG colour types
GREY = 0
RGB = 2
PALETTE = 3
RGBA = 6
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""x, y, dx, dy of each pass."""


def card(
    shape: tuple[Any, int, int] = (1, 28, 28),
    background: tuple[float, ...] | None = None,
    polarity: Any = "light-on-dark",
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> ModelCard:
    background = background or (bounds[0],) * shape[0]
    return make_card(
        shape=shape, polarity=polarity, background=background, range=bounds, distance_quantiles=None
    )


def decode_picture(
    data: bytes | str, limits: DecodeLimits = LIMITS, *, field: str = "image"
) -> Picture:
    return ImageBytes(field, data).open(limits).decode()


def levels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_picture(data).image)


def save(image: Image.Image | NDArray[np.uint8], form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int, channels: int = 3) -> Image.Image:
    """A picture that lossy formats keep nearly unchanged."""
    y, x = np.mgrid[0:height, 0:width]
    bands = [(x * 255 // width), (y * 255 // height), ((x + y) * 255 // (width + height))][
        :channels
    ]
    return Image.merge(
        "RGB" if channels == 3 else "L", [Image.fromarray(band.astype(np.uint8)) for band in bands]
    )


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: NDArray[np.generic],
    colour: int,
    depth: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Any PNG: samples (H, W, bands) of `depth` bit, with more chunks before and after the
    pixels.
    """
    height, width = samples.shape[:2]
    passes = _adam7(samples) if interlaced else iter([samples])
    lines = b"".join(b"\0" + _packed(line, depth) for part in passes for line in part)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND")


def _adam7(samples: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    for x, y, dx, dy in _ADAM7:
        part = samples[y::dy, x::dx]
        if part.size:
            yield part


def _packed(line: NDArray[np.generic], depth: int) -> bytes:
    if depth == 16:
        return line.astype(">u2").tobytes()
    if depth == 8:
        return line.astype(np.uint8).tobytes()
    bits = np.unpackbits(line.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """A small EXIF block: the orientation behind an entry of another kind."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(
        order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,))
    )
    width = struct.pack(order + "HHIHH", 0x0100, 3, 1, 640, 0)
    return (
        mark
        + struct.pack(order + "IH", 8, 2)
        + width
        + struct.pack(order + "HHI", 0x0112, kind, 1)
        + value
    )


def damaged(data: bytes, damage: list[tuple[float, int]], kept: float = 1.0) -> bytes:
    """The first part of the bytes, some of them replaced; ``damage`` has their places, 0 to 1, and
    new values.
    """
    changed = bytearray(data)
    for position, value in damage:
        changed[int(position * (len(data) - 1))] = value
    return bytes(changed[: int(kept * len(changed))])
