"""Convert 8-bit pixels u to values x in the model's range [lo, hi], and values y back to pixels.

x = lo + u·(hi − lo)/255, and u = clip(rint((y − lo)·255/(hi − lo)), 0, 255).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.artifact.card import ModelCard
from service.domain.latents import FloatRows

Pixels = NDArray[np.uint8]  # (…, H, W) grey or (…, H, W, 3) RGB


@lru_cache(maxsize=32)
def _level_values(lo: float, hi: float) -> NDArray[np.float32]:
    levels = np.arange(256, dtype=np.float64)
    values = (lo + levels * (hi - lo) / 255).astype(np.float32)
    values.flags.writeable = False  # shared between threads
    return values


def as_pixels(image: Image.Image) -> Pixels:
    """The pixels of a picture of mode L, (H, W), or RGB, (H, W, 3); read-only."""
    width, height = image.size
    # For small pictures twice as fast as `np.asarray(image)`, which asks Pillow for an array interface first.
    flat = np.frombuffer(image.tobytes(), np.uint8)
    return flat.reshape((height, width) if image.mode == "L" else (height, width, 3))


def to_rows(pixels: Pixels, card: ModelCard) -> FloatRows:
    """Convert pixels (…, H, W) or (…, H, W, 3) to rows (…, C, H, W) float32 in the model's range.

    The values are computed in float64 and rounded once, so that `to_uint8` restores every level.
    """
    channels = pixels[..., None, :, :] if card.shape[0] == 1 else np.moveaxis(pixels, -1, -3)
    return _level_values(*card.range).take(np.ascontiguousarray(channels))


def to_uint8(rows: FloatRows, card: ModelCard) -> Pixels:
    """Convert finite rows (…, C, H, W) to pixels (…, H, W) or (…, H, W, 3).

    Ties are rounded to even, and values outside the range are clipped. The computation is in float64, because in
    float32 the difference y − lo can round a value near a tie to the tie.
    """
    lo, hi = card.range
    levels = rows.astype(np.float64)
    levels -= lo
    levels *= 255
    levels /= hi - lo
    np.rint(levels, out=levels)
    np.maximum(levels, 0, out=levels)
    np.minimum(levels, 255, out=levels)
    pixels = levels.astype(np.uint8)
    return pixels[..., 0, :, :] if card.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(pixels, -3, -1))


def background_levels(card: ModelCard) -> tuple[int, ...]:
    """The background of the card as one 8-bit level per channel, by the formula of `to_uint8`."""
    lo, hi = card.range
    return tuple(round((value - lo) * 255 / (hi - lo)) for value in card.background)
