"""The two buffers of a batch: a step reads the rows in one and writes them into the other."""

import math
from typing import Final, NamedTuple

import numpy as np

from service.domain.latents import FloatRows

_SCRATCH: Final = 16_384  # numbers of the scratch array of differences: 128 KiB, so that it stays in the core's cache


class Buffer(NamedTuple):
    """Three views of a buffer: all of it, the part the model sees, and the rows in use."""

    full: FloatRows  # (limit rounded up to a bucket, C, H, W)
    padded: FloatRows  # (n rounded up to a bucket, C, H, W)
    rows: FloatRows  # (n, C, H, W)

    def cut(self, n: int, padded: int) -> "Buffer":
        """The same buffer with n rows in use."""
        return Buffer(self.full, self.full[:padded], self.full[:n])


class BatchBuffers:
    """The buffers, and what is computed from both. A step allocates nothing.

    Args:
        shape: (N, C, H, W), where N is the largest batch with its padding.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        a, b = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.current, self.next = Buffer(a, a[:0], a[:0]), Buffer(b, b[:0], b[:0])
        size = math.prod(shape[1:])
        self._differences = np.empty((max(1, _SCRATCH // size), size), np.float64)
        self.changes = np.empty(shape[0], np.float64)
        """(N): of rows for which `measure` was called, mean |y − x| of the step from `current` to `next`."""
        self._finite_flags = np.empty(shape, np.bool_)

    def use(self, n: int, padded: int) -> None:
        """Use the first n rows. Padding repeats a real row: any other values could be out of the model's range."""
        full = self.current.full
        full[n:padded] = full[:1]
        self.current, self.next = self.current.cut(n, padded), self.next.cut(n, padded)

    def swap(self) -> None:
        """Make the result of a step the rows of the next one."""
        self.current, self.next = self.next, self.current

    def measure(self, start: int, end: int) -> None:
        """Set `changes` of these rows to the mean |y − x| in float64, summed row by row, independent of the batch."""
        differences, size = self._differences, self._differences.shape[1]
        x, y = (buffer.full.reshape(-1, size) for buffer in (self.current, self.next))
        for first in range(start, end, len(differences)):
            part = slice(first, min(end, first + len(differences)))
            difference = differences[: part.stop - first]
            np.subtract(y[part], x[part], out=difference, dtype=np.float64)
            np.abs(difference, out=difference)
            np.add.reduce(difference, axis=1, out=self.changes[part])
        self.changes[start:end] /= size

    def is_finite(self) -> bool:
        """Whether every value of the rows in `next` is finite."""
        rows = self.next.rows
        return bool(np.isfinite(rows, out=self._finite_flags[: len(rows)]).all())
