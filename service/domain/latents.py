"""Seeded latents, mixtures of latents, and paths and grids of them.

Row i of seed s is a pure function of (s, i). So it does not depend on the number of
rows requested, their order, or the other requests.
"""

import hashlib
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
FloatRows = NDArray[np.float32]  # (N, C, H, W), C-contiguous, in the model's range
FloatRow = NDArray[np.float32]  # (C, H, W)

STREAM: Final = "philox4x64-10(key=(seed, index)) / numpy standard_normal(float32)"
"""Name of the noise stream, stored in the card; a golden test pins its values."""

MAX_SEED: Final = 2**32 - 1
MAX_SEED_TEXT: Final = 200  # characters of a text that stands for a seed
# Latents and images are of order 1. Far larger values overflow float32 inside f, which then gives
# values that are not finite: an error that looks like the model's. This bound leaves a factor of
# 1e32 before that.
MAX_MAGNITUDE: Final = 1e6  # largest |x| of a row that a caller gives
LARGE: Final = 100.0  # no seed and no image gives a larger |x|; a larger one comes from the caller
_PARALLEL: Final = 1e-4  # radians: closer than this to 0 or π, slerp divides by almost 0
_TINY: Final = 1e-100  # the squares of smaller numbers underflow


def seed_of(text: T | str) -> T | int:
    """The seed that a text names: a decimal number up to 2³² − 1 itself, else the start of the
    text's SHA-256. What is no text stays as it is.

    Raises ValueError unless it has 1 to 200 characters.
    """
    if not isinstance(text, str):
        return text
    if not 1 <= len(text) <= MAX_SEED_TEXT:
        raise ValueError(f"must have 1 to {MAX_SEED_TEXT} characters")
    if re.fullmatch("0|[1-9][0-9]{0,9}", text) and int(text) <= MAX_SEED:
        return int(text)
    # A lone surrogate, which JSON may hold, has no UTF-8.
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSource:
    """The distribution of a model's latents (C, H, W): standard normal."""

    shape: tuple[int, int, int]

    def rows(self, seed: int, offset: int, n: int, scale: float = 1.0) -> FloatRows:
        """Latents ``offset`` … ``offset + n − 1`` of ``seed`` (uint32), times ``scale``: (n, C, H,
        W) float32.
        """
        out = np.empty((n, *self.shape), dtype=np.float32)
        for index, row in enumerate(out, offset):
            _STREAM.start["state"]["key"][:] = seed, index
            _STREAM.bits.state = _STREAM.start
            _STREAM.draw(dtype=np.float32, out=row)
        if scale != 1.0:
            out *= np.float32(scale)
        return out


class _Stream(threading.local):
    """The generator of a thread: to make one takes as long as to draw half of a small image."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(0)
        self.start: Any = self.bits.state  # at the start of a stream
        self.draw = np.random.Generator(self.bits).standard_normal


_STREAM: Final = _Stream()


def is_bounded(rows: FloatRows | FloatRow) -> bool:
    """Whether every value is a number within ±`MAX_MAGNITUDE`. NaN and infinity are not."""
    # Two passes without a temporary array. NaN is the minimum of an array that holds one, and
    # compares as false.
    return bool(rows.min() >= -MAX_MAGNITUDE and rows.max() <= MAX_MAGNITUDE)


def lerp(a: FloatRow, b: FloatRow, t: float) -> FloatRow:
    """Straight line (1−t)·a + t·b, computed in float64, t in 0…1. At the ends it returns a and b
    themselves.
    """
    if t <= 0.0:
        return a
    if t >= 1.0:
        return b
    return ((1.0 - t) * a.astype(np.float64) + t * b.astype(np.float64)).astype(np.float32)


def weighted_sum(
    rows: Sequence[FloatRow], weights: Sequence[float], norm: float | None
) -> FloatRow:
    """Σ wᵢ·zᵢ of rows (C, H, W), computed in float64 and rescaled to the Euclidean length ``norm``
    unless it is None.

    Raises ValueError if the sum is zero, so that it has no direction.
    """
    total = np.zeros(rows[0].shape, np.float64)
    for row, weight in zip(rows, weights, strict=True):
        total += weight * row.astype(np.float64)
    largest = float(np.abs(total).max())
    if largest == 0.0:
        raise ValueError("the sum is zero")
    if norm is not None:
        if largest < _TINY:
            total /= largest
        total *= norm / math.sqrt(float((total * total).sum()))
    return total.astype(np.float32)


def slerp(a: FloatRow, b: FloatRow, t: float) -> FloatRow:
    """Great arc between the raw rows a and b (Shoemake, 1985), computed in float64; t in 0…1.

    The weights are sin((1−t)Ω)/sin Ω and sin(tΩ)/sin Ω, where Ω is the angle between the whole
    rows. Rows that are zero, or (anti)parallel within 1e-4 rad, have no unique arc; for them, and
    at the ends, this is :func:`lerp`.
    """
    x = a.astype(np.float64)
    y = b.astype(np.float64)
    norms = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    omega = math.acos(min(1.0, max(-1.0, float((x * y).sum()) / norms))) if norms else 0.0
    if not (0.0 < t < 1.0 and _PARALLEL <= omega <= math.pi - _PARALLEL):
        return lerp(a, b, t)
    wa = math.sin((1.0 - t) * omega) / math.sin(omega)
    wb = math.sin(t * omega) / math.sin(omega)
    return (wa * x + wb * y).astype(np.float32)


Method = Literal["slerp", "lerp"]
_MIX: Final = {"slerp": slerp, "lerp": lerp}


def path_rows(
    points: Sequence[FloatRow], frames: int, method: Method = "slerp", *, loop: bool = False
) -> FloatRows:
    """``frames`` ≥ 2 rows (n, C, H, W) from the first of ≥ 2 points (C, H, W) to the last, both
    included; all segments have the same length in t.

    Three points and 5 frames give t = 0, ¼, ½, ¾, 1: frames 0, 2 and 4 are the points. A ``loop``
    returns to the first point, which is the last frame, too.
    """
    stops = [*points, points[0]] if loop else list(points)
    rows = []
    for i in range(frames):
        # Integer arithmetic, so that a frame that falls on a point is that point exactly.
        segment, remainder = divmod(i * (len(stops) - 1), frames - 1)
        ends = stops[segment : segment + 2]  # of the last frame, its point alone
        rows.append(_MIX[method](ends[0], ends[-1], remainder / (frames - 1)))
    return np.stack(rows)


def grid_rows(
    corners: Sequence[FloatRow], rows: int, cols: int, method: Method = "slerp"
) -> FloatRows:
    """Rows (rows·cols, C, H, W), row-major, ≥ 2 each, between top left, top right, bottom left and
    bottom right, each (C, H, W); `lerp` is bilinear.
    """
    top = path_rows(corners[:2], cols, method)
    bottom = path_rows(corners[2:], cols, method)
    columns = [path_rows(ends, rows, method) for ends in zip(top, bottom, strict=True)]
    return np.concatenate(np.stack(columns, axis=1))
