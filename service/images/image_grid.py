"""Combine several pictures in one grid, row-major."""

import math

import numpy as np

from service.artifact.card import ModelCard
from service.images.pixels import Pixels, background_levels


def sheet_size(n: int, card: ModelCard, *, columns: int | None = None, scale: int = 1, gap: int = 0) -> tuple[int, int]:
    """(width, height) in pixels of the contact sheet of `n` ≥ 1 pictures, each enlarged by ``scale``."""
    rows, columns = _rows_and_columns(n, columns)
    _, height, width = card.shape
    return columns * (width * scale + gap) - gap, rows * (height * scale + gap) - gap


def contact_sheet(pictures: Pixels, card: ModelCard, *, columns: int | None = None, gap: int = 0) -> Pixels:
    """Combine N ≥ 1 pictures: (N, H, W[, 3]) → (rows·(H + gap) − gap, columns·(W + gap) − gap[, 3]).

    Args:
        pictures: uint8.
        card: of the model; empty cells and gaps have its background.
        columns: at most N are used; None for ceil(√N).
        gap: pixels between two pictures.
    """
    n, height, width, *channels = pictures.shape
    rows, columns = _rows_and_columns(n, columns)
    if gap or rows * columns > n:
        background = np.array(background_levels(card), dtype=np.uint8).reshape(channels)
    if gap:  # at the right and at the bottom of each picture; what is then at the edges of the sheet is cut off
        padded = np.empty((n, height + gap, width + gap, *channels), dtype=np.uint8)
        padded[...] = background
        padded[:, :height, :width] = pictures
        pictures, height, width = padded, height + gap, width + gap
    if rows * columns > n:
        empty = np.broadcast_to(background, (rows * columns - n, height, width, *channels))
        pictures = np.concatenate((pictures, empty))
    cells = pictures.reshape(rows, columns, height, width, *channels)
    sheet = np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(rows * height, columns * width, *channels)
    return sheet[: rows * height - gap, : columns * width - gap]


def _rows_and_columns(n: int, columns: int | None) -> tuple[int, int]:
    columns = min(columns, n) if columns else math.isqrt(n - 1) + 1  # ceil(√n) in integers
    return -(-n // columns), columns
