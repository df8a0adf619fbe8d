"""8-bit levels ⇄ the model's range: x = lo + u·(hi − lo)/255 and u = clip(rint((x − lo)·255/(hi −
lo)), 0, 255).
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRows

Levels = NDArray[np.uint8]
MID_GREY: Final = 127.5


@lru_cache(maxsize=32)
def _values(lo: float, hi: float) -> NDArray[np.float32]:
    """The 256 values of the levels, computed in float64 and rounded once, so that `to_levels`
    restores every level.
    """
    values = (lo + np.arange(256, dtype=np.float64) * (hi - lo) / 255).astype(np.float32)
    values.flags.writeable = False  # threads share it
    return values


def to_rows(levels: Levels, lo: float = -1.0, hi: float = 1.0) -> FloatRows:
    """Convert 8-bit levels of any shape to float32 values in [lo, hi] of the same shape."""
    return _values(lo, hi).take(levels)


def to_levels(rows: FloatRows, lo: float = -1.0, hi: float = 1.0) -> Levels:
    """Convert finite float32 values of any shape to 8-bit levels: clipped to [lo, hi], rounded,
    ties to even.

    The computation is in float64: in float32 the difference x − lo would turn near-ties into ties.
    """
    levels = rows.astype(np.float64)
    levels -= lo
    levels *= 255
    levels /= hi - lo
    np.rint(levels, out=levels)
    return levels.clip(0, 255, out=levels).astype(np.uint8)


def ring_mean(pixels: Levels) -> float:
    """The mean level of the outermost ring of pixels of an image (H, W) or (H, W, C), each counted
    once.

    A light-on-dark model inverts images whose ring is lighter than `MID_GREY`.
    """
    edges = (pixels[:1], pixels[1:][-1:], pixels[1:-1, :1], pixels[1:-1, 1:][:, -1:])
    ring = b"".join(map(np.ndarray.tobytes, edges))  # for about 100 bytes faster than `np.mean`
    return sum(ring) / len(ring)
