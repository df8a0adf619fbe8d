"""What one model has done since it was loaded, counted where the work happens.

The Prometheus metrics of `service.observability.metrics` are for whoever operates the service; these are what a caller of the Open
Inference Protocol asks for, one model at a time, and they begin anew with every load.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from service.scheduling.scheduler import SchedulerObserver


@dataclass(slots=True)
class Duration:
    """How often something happened, and for how many seconds in all."""

    count: int = 0
    seconds: float = 0.0

    @property
    def ns(self) -> int:
        """The time in nanoseconds."""
        return round(self.seconds * 1e9)

    def add(self, seconds: float) -> None:
        """It happened once more."""
        self.count += 1
        self.seconds += seconds

    def copy(self) -> "Duration":
        """The same, which no longer changes."""
        return Duration(self.count, self.seconds)


@dataclass(slots=True, kw_only=True)
class Counts:
    """All that is counted of one model.

    Args:
        rows: of requests that succeeded.
        last_ms: when the last of them ended, in milliseconds of the Unix epoch; 0 before the first.
        success, fail: requests, from their submission to their end; of those refused or left by their caller the time
            is not known and counts as none.
        queue, infer: parts of `success`: before and after the first row entered a batch.
        input, output: turning tensors into rows and back, which takes no time where no tensors are; parts of `success`.
        batches: calls of the model, by their rows.
    """

    rows: int = 0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    batches: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))


class ModelStatistics(SchedulerObserver):
    """Counts what a scheduler reports, and passes it on.

    Args:
        also: hears everything as well.
        clock: seconds of the Unix epoch.
    """

    def __init__(self, also: SchedulerObserver, clock: Callable[[], float] = time.time) -> None:
        self._also = also
        self._clock = clock
        self._lock = threading.Lock()  # the event loop and the workers report
        self._counts = Counts()

    def counts(self) -> Counts:
        """What was counted up to now, as a copy that fits together."""
        with self._lock:
            now = self._counts
            names = ("success", "fail", "queue", "input", "infer", "output")
            durations = {name: getattr(now, name).copy() for name in names}
            batches = defaultdict(Duration, {rows: spent.copy() for rows, spent in sorted(now.batches.items())})
            return Counts(rows=now.rows, last_ms=now.last_ms, batches=batches, **durations)

    def tensors(self, read_s: float, written_s: float) -> None:
        """A request that succeeded, and is counted, was read and answered as tensors in so many seconds."""
        with self._lock:
            self._counts.input.seconds += read_s
            self._counts.output.seconds += written_s
            self._counts.success.seconds += read_s + written_s

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """One call of the model."""
        with self._lock:
            self._counts.batches[rows].add(seconds)
        self._also.batch(rows, padded, seconds, reason)

    def finished(self, rows: int, outcome: str, queue_s: float, compute_s: float) -> None:
        """A request ended with outcome `ok` or the code of its error."""
        with self._lock:
            counts = self._counts
            if outcome == "ok":
                counts.rows += rows
                counts.last_ms = round(self._clock() * 1e3)
                counts.success.add(queue_s + compute_s)
                # All of them here: perf_analyzer gives up where a request is counted in one part and not in another.
                counts.queue.add(queue_s)
                counts.infer.add(compute_s)
                counts.input.count += 1
                counts.output.count += 1
            else:
                counts.fail.add(queue_s + compute_s)
        self._also.finished(rows, outcome, queue_s, compute_s)

    def rejected(self, reason: str) -> None:
        """A request was refused."""
        with self._lock:
            self._counts.fail.add(0.0)
        self._also.rejected(reason)

    def cancelled(self, rows: int) -> None:
        """A caller left, and so many of its rows were not finished."""
        with self._lock:
            self._counts.fail.add(0.0)
        self._also.cancelled(rows)

    def early_exit(self, rows: int) -> None:
        """So many rows met their tolerance before their last step."""
        self._also.early_exit(rows)

    def reduce_max_batch(self, batch_rows: int) -> None:
        """The device ran out of memory; the largest batch is now this."""
        self._also.reduce_max_batch(batch_rows)

    def device_lost(self) -> None:
        """A device fails every call from now on."""
        self._also.device_lost()

    def worker_replaced(self) -> None:
        """A worker's thread died and another one replaced it."""
        self._also.worker_replaced()
