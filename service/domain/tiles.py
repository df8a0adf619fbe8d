"""Cut images of any size into tiles of one size, and put the results together without a seam.

    0         overlap                       a tile: f knows too little of the image near an inner edge, so what it
    │─ unused ─│╱ blend ╱│───────────       gives there is not used. Between two tiles, both results are mixed.
    │          │╱ blend ╱│──── unused ─│

At the border of an image a tile ends where the image ends, so f sees the same border as in the whole image; with a
``margin``, the image is mirrored beyond every edge first, by as many pixels. An image smaller than a tile, or with a
side that is no ``multiple``, is mirrored beyond its right and lower edge.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRow

Size = tuple[int, int]  # (H, W) in pixels
_BLEND: Final = 16  # pixels in which the weights of two tiles change places


class _Axis(NamedTuple):
    length: int  # of the mirrored image
    starts: Sequence[int]
    weights: NDArray[np.float32]  # (tiles, side of a tile); at every pixel their sum is 1


@lru_cache(maxsize=64)
def _axis(length: int, tile: int, overlap: int, multiple: int) -> _Axis:
    length = max(tile, -(-length // multiple) * multiple)
    if length == tile:  # without inner edges, and perhaps smaller than the overlap
        return _Axis(length, [0], np.ones((1, tile), dtype=np.float32))
    blend = min(_BLEND, (tile - 2 * overlap) // 2)
    stride = (tile - 2 * overlap - blend) // multiple * multiple
    starts = [*range(0, length - tile, stride), length - tile]
    ramp = np.ones(tile)
    ramp[: overlap + blend] = [0.0] * overlap + [(i + 1) / (blend + 1) for i in range(blend)]
    weights = np.ones((len(starts), tile))
    weights[1:] *= ramp
    weights[:-1] *= ramp[::-1]
    total = np.zeros(length)
    for start, each in zip(starts, weights, strict=True):
        total[start : start + tile] += each
    for start, each in zip(starts, weights, strict=True):
        each /= total[start : start + tile]
    return _Axis(length, starts, weights.astype(np.float32))


class Tiling:
    """The tiles of an image, row by row. Overlap and margin are in pixels.

    Tiles begin at multiples of ``multiple``, and have more than twice the ``overlap`` where there are several.
    """

    def __init__(self, size: Size, tile: Size, *, overlap: int, multiple: int = 1, margin: int = 0) -> None:
        self.size, self.tile, self._margin = size, tile, margin
        axes = (_axis(side + 2 * margin, each, overlap, multiple) for side, each in zip(size, tile, strict=True))
        self._down, self._right = axes
        self.count = len(self._down.starts) * len(self._right.starts)

    def mirrored(self, image: FloatRow) -> FloatRow:
        """The image (C, H, W), mirrored beyond its edges where that is needed."""
        lengths, margin = (self._down.length, self._right.length), self._margin
        beyond = [(margin, length - margin - side) for length, side in zip(lengths, self.size, strict=True)]
        return np.pad(image, [(0, 0), *beyond], mode="symmetric") if any(map(any, beyond)) else image

    def empty(self, image: FloatRow) -> FloatRow:
        """Zeros with the shape of the mirrored image, for `paste`."""
        return np.zeros((len(image), self._down.length, self._right.length), dtype=np.float32)

    def cut(self, mirrored: FloatRow, index: int, out: FloatRow) -> None:
        """Copy tile ``index`` of a mirrored image to ``out``."""
        (top, left), (height, width) = self._corner(index), self.tile
        out[...] = mirrored[:, top : top + height, left : left + width]

    def paste(self, tile: FloatRow, index: int, canvas: FloatRow) -> None:
        """Add the result of tile ``index`` to a canvas. The sum depends on the order only by rounding."""
        (top, left), (height, width) = self._corner(index), self.tile
        row, column = divmod(index, len(self._right.starts))
        weights = self._down.weights[row][:, None] * self._right.weights[column]
        canvas[:, top : top + height, left : left + width] += tile * weights

    def cropped(self, canvas: FloatRow) -> FloatRow:
        """The image on a canvas, without what was mirrored."""
        (height, width), margin = self.size, self._margin
        return np.ascontiguousarray(canvas[:, margin : margin + height, margin : margin + width])

    def _corner(self, index: int) -> Size:
        row, column = divmod(index, len(self._right.starts))
        return self._down.starts[row], self._right.starts[column]
