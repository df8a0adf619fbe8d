"""Pictures with the channels last ⇄ rows with the channels first; `service.artifact.pixels` has the value range."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.artifact import pixels
from service.artifact.card import ModelCard
from service.domain.latents import FloatRows

Pixels = NDArray[np.uint8]  # (…, H, W) grey or (…, H, W, 3) RGB


def as_pixels(image: Image.Image) -> Pixels:
    """The pixels of a picture of mode L, (H, W), or RGB, (H, W, 3); read-only."""
    width, height = image.size
    # For small pictures twice as fast as `np.asarray(image)`, which asks Pillow for an array interface first.
    flat = np.frombuffer(image.tobytes(), np.uint8)
    return flat.reshape((height, width) if image.mode == "L" else (height, width, 3))


def to_rows(picture: Pixels, card: ModelCard) -> FloatRows:
    """Convert pixels (…, H, W) or (…, H, W, 3) to rows (…, C, H, W) float32 in the model's range."""
    channels = picture[..., None, :, :] if card.shape[0] == 1 else np.moveaxis(picture, -1, -3)
    return pixels.to_rows(np.ascontiguousarray(channels), *card.range)


def to_uint8(rows: FloatRows, card: ModelCard) -> Pixels:
    """Convert finite rows (…, C, H, W) to pixels (…, H, W) or (…, H, W, 3); values outside the range are clipped."""
    levels = pixels.to_levels(rows, *card.range)
    return levels[..., 0, :, :] if card.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(levels, -3, -1))


def background_levels(card: ModelCard) -> tuple[int, ...]:
    """The background of the card as one 8-bit level per channel, by the formula of `to_uint8`."""
    lo, hi = card.range
    return tuple(round((value - lo) * 255 / (hi - lo)) for value in card.background)
