"""Interpolation of latents: frames along a path, or a grid between four corners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.domain.latents import FloatRow, FloatRows, lerp, slerp

Method = Literal["slerp", "lerp"]
_MIX: dict[Method, Callable[[FloatRow, FloatRow, float], FloatRow]] = {"slerp": slerp, "lerp": lerp}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPath:
    """``frames`` rows from the first point to the last, both included; all segments have the same length in t.

    Args:
        frames: ≥ 2, over the whole path.
        method: `slerp` or `lerp`.
        loop: return to the first point; the last frame repeats the first.
    """

    frames: int
    method: Method = "slerp"
    loop: bool = False

    def rows(self, points: Sequence[FloatRow]) -> FloatRows:
        """The frames to compute, (n, C, H, W): all of them, or all but the last of a loop, which repeats the first.

        Args:
            points: ≥ 2 rows (C, H, W). A frame that falls on a point equals it bit for bit.
        """
        stops = [*points, points[0]] if self.loop else list(points)
        frames = []
        for i in range(self.frames - self.loop):
            # Integer arithmetic, so that a frame that falls on a point is that point exactly.
            segment, remainder = divmod(i * (len(stops) - 1), self.frames - 1)
            if remainder == 0:
                frames.append(stops[segment])
            else:
                t = remainder / (self.frames - 1)
                frames.append(_MIX[self.method](stops[segment], stops[segment + 1], t))
        return np.stack(frames)

    def times(self) -> list[float]:
        """The parameter t of every frame, 0…1."""
        return [i / (self.frames - 1) for i in range(self.frames)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """rows × cols rows between four corners, row-major.

    Args:
        rows, cols: ≥ 2 each.
        method: `slerp` (spherical) or `lerp` (bilinear).
    """

    rows: int
    cols: int
    method: Method = "slerp"

    def latents(self, corners: Sequence[FloatRow]) -> FloatRows:
        """(rows·cols, C, H, W).

        Args:
            corners: top left, top right, bottom left, bottom right, each (C, H, W).
        """
        mix = _MIX[self.method]
        top_left, top_right, bottom_left, bottom_right = corners
        columns = [
            (mix(top_left, top_right, c / (self.cols - 1)), mix(bottom_left, bottom_right, c / (self.cols - 1)))
            for c in range(self.cols)
        ]
        return np.stack([mix(top, bottom, r / (self.rows - 1)) for r in range(self.rows) for top, bottom in columns])

    def coordinates(self) -> list[tuple[int, int]]:
        """(row, col) of every frame."""
        return [(r, c) for r in range(self.rows) for c in range(self.cols)]
