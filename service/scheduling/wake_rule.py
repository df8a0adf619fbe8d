"""When a further worker of a model is woken on a CPU: only where the model and not HTTP is the limit.

If the event loop needs more CPU time for a request than a worker needs for its rows, a second worker cannot answer more
requests per second. It only makes batches smaller and, where it shares the event loop's core, takes time from the loop.
"""

import time
from collections.abc import Callable
from typing import Final

_MIN_ROWS: Final = 16  # with fewer rows, two batches cost more CPU time than one saves
_SHARED_CORE_MIN_ROWS: Final = 64  # the same where a further worker takes CPU time from the event loop
_MODEL_BOUND: Final = 4.0  # ratio of the CPU times of workers and event loop from which sharing its core pays
_SMOOTHING: Final = 0.05  # weight of the newest measurement
_MAX_GAP_S: Final = 0.1  # longest time between arrivals that is measured: an idle event loop does other work, too
_NEVER: Final = 1 << 30


class WakeRule:
    """Measures the CPU time of the event loop and of the workers, and decides how many rows are worth another worker.

    Args:
        min_rows: fewest waiting rows of few steps for which a further worker is woken.
        shared_min_rows: used instead while workers need less than `_MODEL_BOUND` times the CPU time of the event loop.
        cpu_clock: CPU seconds of the calling thread.
    """

    def __init__(
        self,
        min_rows: int = _MIN_ROWS,
        *,
        shared_min_rows: int | None = None,
        cpu_clock: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cpu_clock = cpu_clock
        self._min_rows, self._shared_min_rows, self._clock = min_rows, shared_min_rows or min_rows, clock
        self._seconds_per_request = 0.0  # of the event loop; 0: not measured yet
        self._seconds_per_row = 0.0  # of a worker, for one step of a row
        self._loop_cpu, self._last_arrivals = 0.0, -1.0

    def on_arrivals(self, requests: int) -> None:
        """Measure the event loop. Called in its thread, with the number of requests since the last call."""
        cpu, now = self.cpu_clock(), self._clock()
        if now - self._last_arrivals < _MAX_GAP_S:
            self._seconds_per_request = _smoothed(self._seconds_per_request, (cpu - self._loop_cpu) / requests)
        self._loop_cpu, self._last_arrivals = cpu, now

    def on_steps(self, row_steps: int, cpu_seconds: float) -> None:
        """Learn the CPU time of a worker for so many steps of rows. The caller holds the pool's lock."""
        if row_steps:
            self._seconds_per_row = _smoothed(self._seconds_per_row, cpu_seconds / row_steps)

    def min_rows(self, requests: int, rows: int) -> int:
        """Fewest waiting rows that are worth a further worker, while so many requests with so many rows are open."""
        http, model = self._seconds_per_request * requests, self._seconds_per_row * rows
        if model < http:
            return _NEVER
        return self._min_rows if model >= _MODEL_BOUND * http else self._shared_min_rows


def wake_rule(device: str, instances: int, cores: int) -> WakeRule | None:
    """The rule for a model on ``device``: None on a GPU, whose workers wait most of the time, and for one instance.

    With fewer instances than ``cores``, which the process may use, one core is left to the event loop.
    """
    if device != "cpu" or instances < 2:
        return None
    return WakeRule(shared_min_rows=None if instances < cores else _SHARED_CORE_MIN_ROWS)


def _smoothed(average: float, value: float) -> float:
    return average + _SMOOTHING * (value - average) if average else value
