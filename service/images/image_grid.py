"""Combine several pictures in one grid: row-major, at their own size, without padding."""

import math

import numpy as np

from service.artifact.card import ModelCard
from service.images.pixels import Pixels, background_levels


def sheet_size(n: int, card: ModelCard, *, columns: int | None = None) -> tuple[int, int]:
    """(width, height) in pixels of the contact sheet of `n` ≥ 1 pictures."""
    columns = columns or _near_square(n)
    return columns * card.shape[2], -(-n // columns) * card.shape[1]


def contact_sheet(pictures: Pixels, card: ModelCard, *, columns: int | None = None) -> Pixels:
    """Combine N ≥ 1 pictures: (N, H, W[, 3]) → (rows·H, columns·W[, 3]).

    Args:
        pictures: uint8.
        card: of the model; empty cells have its background.
        columns: None for ceil(√N).
    """
    n, height, width, *channels = pictures.shape
    columns = columns or _near_square(n)
    rows = -(-n // columns)
    if rows * columns > n:
        background = np.array(background_levels(card), dtype=np.uint8)
        empty = np.broadcast_to(background.reshape(channels), (rows * columns - n, height, width, *channels))
        pictures = np.concatenate((pictures, empty))
    cells = pictures.reshape(rows, columns, height, width, *channels)
    return np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(rows * height, columns * width, *channels)


def strip(pictures: Pixels, card: ModelCard) -> Pixels:
    """Combine N ≥ 1 pictures in one row: (N, H, W[, 3]) → (H, N·W[, 3])."""
    return contact_sheet(pictures, card, columns=len(pictures))


def _near_square(n: int) -> int:
    return math.isqrt(n - 1) + 1  # ceil(√n) in integers
