"""Cut images of any size into tiles of one size, and put the results together without a seam.

    │─ unused ─│╱ blend ╱│───────────
               │╱ blend ╱│───────────│─ unused ─│

f knows too little of the image near an inner edge of a tile, so what it gives in the overlap is not
used. Between two tiles, both results are mixed.

At the border of an image a tile ends where the image ends, so f sees the same border as in the
whole image; with a ``margin``, the image is mirrored beyond every edge first, by as many pixels. An
image smaller than a tile, or with a side that is no ``multiple``, is mirrored beyond its right and
lower edge.

A tiling is arithmetic on two sides. It holds no array before the first result is pasted, so a
caller's sizes cost nothing before pixels are there.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRow

Size = tuple[int, int]  # (H, W) in pixels
MAX_SIDE: Final = 16_384  # pixels of the longest side of an image
_BLEND: Final = 16  # pixels in which the weights of two tiles change places
_STRIP: Final = 64  # lines


class _Axis:
    """The tiles along one side of an image. Places are pixels of the mirrored side."""

    def __init__(self, side: int, tile: int, overlap: int, multiple: int, margin: int) -> None:
        self.side = side  # of the image
        self.tile = tile
        self.overlap = overlap
        self.margin = margin
        # of the mirrored side
        self.length = max(tile, -(-(side + 2 * margin) // multiple) * multiple)
        self.blend = max(0, min(_BLEND, (tile - 2 * overlap) // 2))
        self.stride = (tile - 2 * overlap - self.blend) // multiple * multiple

    @cached_property
    def count(self) -> int:
        """Tiles along the side."""
        rest = self.length - self.tile
        return 1 + (-(-rest // self.stride) if rest else 0)

    def start(self, index: int) -> int:
        """Where a tile begins."""
        return min(index * self.stride, self.length - self.tile) if index else 0

    @cached_property
    def _total(self) -> NDArray[np.float64]:
        total = np.zeros(self.length)
        for index in range(self.count):
            start = self.start(index)
            total[start : start + self.tile] += self._ramps(index)
        return total

    def weights(self, index: int) -> NDArray[np.float32]:
        """The weights (tile,) of a tile's pixels; at every pixel those of all tiles have the sum
        1.
        """
        own = self._ramps(index)
        start = self.start(index)
        total = self._total[start : start + self.tile]
        return np.divide(own, total, out=np.zeros(self.tile), where=own > 0).astype(np.float32)

    def seen(self, index: int) -> NDArray[np.intp]:
        """The pixels (tile,) of the image that a tile sees, in 0 … side − 1."""
        place = np.arange(self.tile) + (self.start(index) - self.margin)
        place %= 2 * self.side
        return np.minimum(place, 2 * self.side - 1 - place)

    def inside(self, index: int) -> tuple[slice, slice]:
        """The part of a tile that lies in the image without what is mirrored: where in the tile,
        where in the image.
        """
        start = self.start(index) - self.margin
        first = max(0, -start)
        last = max(first, min(self.tile, self.side - start))
        return slice(first, last), slice(start + first, start + last)

    def _ramps(self, index: int) -> NDArray[np.float64]:
        places = np.arange(self.tile) - (self.overlap - 1)
        ramp = np.clip(places / (self.blend + 1), 0.0, 1.0)
        weights = np.ones(self.tile)
        if index > 0:
            weights *= ramp
        if index < self.count - 1:
            weights *= ramp[::-1]
        return weights


class Tiling:
    """The tiles of an image, row by row. Overlap and margin are in pixels.

    Tiles begin at multiples of ``multiple``, and have more than twice the ``overlap`` where there
    are several. Each side of `tile`, which is (H, W), is that of ``largest`` or one of ``smaller``:
    the one with which the tiles have the fewest pixels. Raises ValueError if none lets them
    reach the end of the image.
    """

    def __init__(
        self,
        size: Size,
        largest: Size,
        *,
        overlap: int,
        multiple: int = 1,
        margin: int = 0,
        smaller: Sequence[int] = (),
    ) -> None:
        def axis(side: int, largest: int) -> _Axis:
            # In this order the largest of several with as few pixels.
            axes = [
                _Axis(side, tile, overlap, multiple, margin) for tile in (largest, *smaller[::-1])
            ]
            # A single tile has no inner edge, and may be smaller than the overlap, which gives a
            # stride below 1.
            possible = [each for each in axes if each.length == each.tile or each.stride > 0]
            return min(possible, key=lambda each: each.count * each.tile)

        self.size = size
        self._down, self._right = map(axis, size, largest)
        self.tile = (self._down.tile, self._right.tile)
        self.count = self._down.count * self._right.count

    def cut(self, image: FloatRow, index: int, out: FloatRow) -> None:
        """Copy tile ``index`` of an image (C, H, W), mirrored beyond its edges, to ``out`` (C,
        *tile).
        """
        row, column = divmod(index, self._right.count)
        rows = self._down.seen(row)
        columns = self._right.seen(column)
        # First the part that the tile sees: to take lines of a wide image would copy all of their
        # pixels.
        top = rows.min()
        left = columns.min()
        part = image[:, top : rows.max() + 1, left : columns.max() + 1]
        # All places are inside, so `clip` changes none; it writes to `out` without a copy of it.
        np.take(part.take(rows - top, axis=1), columns - left, axis=2, out=out, mode="clip")

    def paste(self, tile: FloatRow, index: int, canvas: FloatRow) -> None:
        """Add the result of tile ``index`` to a canvas (C, H, W), zeros at first.

        The sum depends on the order of the tiles only by rounding.
        """
        row, column = divmod(index, self._right.count)
        (lines, top), (pixels, left) = self._down.inside(row), self._right.inside(column)
        down = self._down.weights(row)[lines, None]
        right = self._right.weights(column)[pixels]
        source = tile[:, lines, pixels]
        target = canvas[:, top, left]
        # Strips of lines, of which several arrays fit into a core's cache.
        for line in range(0, target.shape[1], _STRIP):
            strip = slice(line, line + _STRIP)
            target[:, strip] += source[:, strip] * (down[strip] * right)
