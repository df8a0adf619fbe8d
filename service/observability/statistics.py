"""Statistics of one model for the Open Inference Protocol, counted since the model was loaded.

Operators use the Prometheus metrics of `service.observability.metrics` instead.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.observability.metrics import Metrics, SchedulerMetrics
from service.scheduling.observer import Finished


@dataclass(slots=True)
class Duration:
    """Number of events and their total duration in seconds."""

    count: int = 0
    seconds: float = 0.0

    @property
    def ns(self) -> int:
        """Total duration in nanoseconds."""
        return round(self.seconds * 1e9)

    def copy(self) -> "Duration":
        """A copy that later events do not change."""
        return Duration(self.count, self.seconds)


@dataclass(slots=True, kw_only=True)
class Counts:
    """The statistics of one model.

    Args:
        rows: rows of successful requests.
        last_ms: end of the last successful request, in milliseconds since the Unix epoch; 0 if there was none.
        success, fail: requests, from submission to end. Rejected and cancelled requests count with 0 s.
        queue, infer: parts of `success`, before and after the first row enters a batch.
        input, output: parts of `success`: parsing and serialising tensors; 0 s for image endpoints.
        batches: model calls by number of rows.
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


class ModelStatistics(SchedulerMetrics):
    """The `SchedulerObserver` of one model: counts in the metrics, and since the model was loaded.

    The event loop and the workers call it.

    Args:
        metrics: the metric objects.
        model: `name/version`.
        clock: returns seconds since the Unix epoch.
    """

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float] = time.time) -> None:
        super().__init__(metrics, model)
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = Counts()

    def counts(self) -> Counts:
        """A consistent copy of all counts."""
        with self._lock:
            now = self._counts
            names = ("success", "fail", "queue", "input", "infer", "output")
            durations = {name: getattr(now, name).copy() for name in names}
            batches = defaultdict(Duration, {rows: spent.copy() for rows, spent in sorted(now.batches.items())})
            return Counts(rows=now.rows, last_ms=now.last_ms, batches=batches, **durations)

    async def read(self) -> Counts:
        """As `counts`; statistics of a model in another process have this method only."""
        return self.counts()

    def tensors(self, read_s: float, written_s: float) -> None:
        """Add the times of parsing and serialising the tensors of a request that `finished` has counted."""
        with self._lock:
            self._counts.input.seconds += read_s
            self._counts.output.seconds += written_s
            self._counts.success.seconds += read_s + written_s

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """Count a model call."""
        super().batch(rows, padded, seconds, reason)
        with self._lock:
            duration = self._counts.batches[rows]
            duration.count += 1
            duration.seconds += seconds

    def finished(self, requests: Sequence[Finished]) -> None:
        """Count finished requests."""
        super().finished(requests)
        with self._lock:
            counts, succeeded = self._counts, 0
            for rows, outcome, queue_s, compute_s in requests:
                if outcome != "ok":
                    counts.fail.count += 1
                    counts.fail.seconds += queue_s + compute_s
                    continue
                succeeded += 1
                counts.rows += rows
                counts.success.seconds += queue_s + compute_s
                counts.queue.seconds += queue_s
                counts.infer.seconds += compute_s
            if succeeded:
                counts.last_ms = round(self._clock() * 1e3)
            # perf_analyzer gives up if the parts of a request have different counts.
            for duration in (counts.success, counts.queue, counts.infer, counts.input, counts.output):
                duration.count += succeeded

    def rejected(self, reason: str) -> None:
        """Count a request rejected at admission."""
        super().rejected(reason)
        with self._lock:
            self._counts.fail.count += 1

    def cancelled(self, rows: int) -> None:
        """Count a request whose client disconnected."""
        super().cancelled(rows)
        with self._lock:
            self._counts.fail.count += 1
