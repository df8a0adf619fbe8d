"""Model range to 8-bit pixels and back."""

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRows

Levels = NDArray[np.uint8]


def to_levels(rows: FloatRows) -> Levels:
    """Rows as a picture file holds them: clipped and rounded to 8 bits."""
    return np.rint((rows.clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def to_rows(levels: Levels) -> FloatRows:
    """Levels as rows."""
    return levels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
