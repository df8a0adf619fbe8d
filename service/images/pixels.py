"""8-bit pixels, channels last: their conversion to rows, enlarging, and sheets of several images."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.artifact import pixels as levels
from service.artifact.card import ModelCard
from service.domain.latents import FloatRows

Pixels = NDArray[np.uint8]  # (…, H, W) grey or (…, H, W, 3) RGB
Resample = Literal["nearest", "smooth"]


def as_pixels(image: Image.Image) -> Pixels:
    """The pixels of an image of mode L, (H, W), or RGB, (H, W, 3); read-only."""
    width, height = image.size
    # For small images twice as fast as `np.asarray(image)`, which asks Pillow for an array interface first.
    flat = np.frombuffer(image.tobytes(), np.uint8)
    return flat.reshape((height, width) if image.mode == "L" else (height, width, 3))


def to_rows(pixels: Pixels, card: ModelCard) -> FloatRows:
    """Convert pixels (…, H, W) or (…, H, W, 3) to rows (…, C, H, W) float32 in the model's range."""
    channels = pixels[..., None, :, :] if card.shape[0] == 1 else np.moveaxis(pixels, -1, -3)
    return levels.to_rows(np.ascontiguousarray(channels), *card.range)


def to_uint8(rows: FloatRows, card: ModelCard) -> Pixels:
    """Convert finite rows (…, C, H, W) to pixels (…, H, W) or (…, H, W, 3); values outside the range are clipped."""
    channels = levels.to_levels(rows, *card.range)
    return channels[..., 0, :, :] if card.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(channels, -3, -1))


def background_levels(card: ModelCard) -> tuple[int, ...]:
    """The background of the card as one 8-bit level per channel, by the formula of `to_uint8`."""
    lo, hi = card.range
    return tuple(round((value - lo) * 255 / (hi - lo)) for value in card.background)


def enlarge(image: Pixels, scale: int, resample: Resample) -> Pixels:
    """Enlarge one image by a whole factor ≥ 1: (H, W[, 3]) → (scale·H, scale·W[, 3]).

    `nearest` repeats each pixel as a square; `smooth` is Lanczos.
    """
    height, width, *channels = image.shape
    if scale == 1:
        return image
    if resample == "smooth":
        size = (width * scale, height * scale)
        return as_pixels(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    squares = np.broadcast_to(image[:, None, :, None], (height, scale, width, scale, *channels))
    return squares.reshape(height * scale, width * scale, *channels)


def sheet_size(n: int, card: ModelCard, *, columns: int | None = None, scale: int = 1, gap: int = 0) -> tuple[int, int]:
    """(width, height) in pixels of the contact sheet of `n` ≥ 1 images, each enlarged by ``scale``."""
    rows, columns = _rows_and_columns(n, columns)
    _, height, width = card.shape
    return columns * (width * scale + gap) - gap, rows * (height * scale + gap) - gap


def contact_sheet(images: Pixels, card: ModelCard, *, columns: int | None = None, gap: int = 0) -> Pixels:
    """Combine N ≥ 1 images row-major: (N, H, W[, 3]) → (rows·(H + gap) − gap, columns·(W + gap) − gap[, 3]).

    The background of the card fills empty cells and the gaps between images. At most N ``columns`` are used, by default
    ceil(√N).
    """
    n, height, width, *channels = images.shape
    rows, columns = _rows_and_columns(n, columns)
    if gap or rows * columns > n:
        background = np.array(background_levels(card), dtype=np.uint8).reshape(channels)
    if gap:
        # Every cell gets the gap at its right and at its bottom; the last line cuts it off at the edges of the sheet.
        padded = np.empty((n, height + gap, width + gap, *channels), dtype=np.uint8)
        padded[...] = background
        padded[:, :height, :width] = images
        images, height, width = padded, height + gap, width + gap
    if rows * columns > n:
        empty = np.broadcast_to(background, (rows * columns - n, height, width, *channels))
        images = np.concatenate((images, empty))
    cells = images.reshape(rows, columns, height, width, *channels)
    sheet = np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(rows * height, columns * width, *channels)
    return sheet[: rows * height - gap, : columns * width - gap]


def _rows_and_columns(n: int, columns: int | None) -> tuple[int, int]:
    columns = min(columns, n) if columns else math.isqrt(n - 1) + 1  # ceil(√n) in integers
    return -(-n // columns), columns
