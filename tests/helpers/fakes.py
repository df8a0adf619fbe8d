import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from service.domain.latents import FloatRow, FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory


class FakeModel:
    """Halves its input unless told otherwise; ``gate`` blocks every call until it is set."""

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 4, 4),
        function: Callable[[FloatRows], FloatRows] = lambda rows: rows * np.float32(0.5),
        buckets: Sequence[int] | None = None,
        *,
        gate: threading.Event | None = None,
        poison: Callable[[FloatRow], bool] | None = None,
        memory_rows: int | None = None,
        failures: Mapping[float, str] | None = None,
        lost_in: int = 0,
    ) -> None:
        self.shape = shape
        self.function = function
        self.buckets = buckets
        self.gate = gate
        self.poison = poison
        self.memory_rows = memory_rows
        self.failures = failures or {}  # what the model says to a row with this first number
        self.lost_in = lost_in  # the call, counted from 1, from which on all fail; 0: none
        self.sizes: list[int] = []  # of every batch run
        self.batch_size_reductions = 0
        self.entered = threading.Event()

    def run(self, rows: FloatRows) -> FloatRows:
        self.sizes.append(len(rows))
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        if self.lost_in and len(self.sizes) >= self.lost_in:
            raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")
        if self.memory_rows is not None and len(rows) > self.memory_rows:
            raise DeviceOutOfMemory
        if self.poison is not None and any(self.poison(row) for row in rows):
            raise RuntimeError("poison")
        for row in rows:
            if message := self.failures.get(float(row.flat[0])):
                raise RuntimeError(message)
        return self.function(rows)

    def reduce_max_batch(self) -> None:
        self.batch_size_reductions += 1
        if self.buckets is not None and len(self.buckets) > 1:
            self.buckets = self.buckets[:-1]
