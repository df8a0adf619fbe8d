"""What the scheduler of one model reports: counted in the metrics, and for the Open Inference Protocol."""

import copy
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.observability.metrics import Metrics
from service.scheduling.observer import Finished, SchedulerObserver

# These series exist from the start with value 0. `increase` misses the first event of a series that starts at 1.
_OUTCOMES: Final = ("ok", "deadline_exceeded", "model_failure")
_REASONS: Final = ("queue_full", "would_miss_deadline")


@dataclass(slots=True)
class Duration:
    """Number of events and their total duration in seconds."""

    count: int = 0
    seconds: float = 0.0

    @property
    def ns(self) -> int:
        """Total duration in nanoseconds."""
        return round(self.seconds * 1e9)

    def add(self, seconds: float, count: int = 1) -> None:
        """Count events that took so long together."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True, kw_only=True)
class Counts:
    """The statistics of one model since it was loaded. The metrics count since the process started instead."""

    rows: int = 0  # of successful requests
    last_ms: int = 0  # end of the last successful request, in milliseconds since the Unix epoch; 0 if there was none
    success: Duration = field(default_factory=Duration)  # from submission to end
    fail: Duration = field(default_factory=Duration)  # rejected and cancelled requests count with 0 s
    # Parts of `success`: before and after the first row enters a batch, parsing and serialising tensors
    queue: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    input: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    batches: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))  # by number of rows


class ModelStatistics(SchedulerObserver):
    """Counts what the scheduler of one model, `name/version`, reports. The event loop and the workers call it."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._model, self._clock = metrics, model, clock
        self._lock = threading.Lock()
        self._counts = Counts()
        for outcome in _OUTCOMES:
            metrics.scheduled_requests(model, outcome)
        for reason in _REASONS:
            metrics.rejected_requests(model, reason)
        for counter in (metrics.early_exits, metrics.cancellations, metrics.devices_lost, metrics.replacements):
            counter(model)

    def counts(self) -> Counts:
        """A consistent copy of all counts."""
        with self._lock:
            counts = copy.deepcopy(self._counts)
        counts.batches = defaultdict(Duration, sorted(counts.batches.items()))
        return counts

    def tensors(self, read_s: float, written_s: float) -> None:
        """Add the times of parsing and serialising the tensors of a request that `finished` has counted."""
        with self._lock:
            self._counts.input.add(read_s, 0)
            self._counts.output.add(written_s, 0)
            self._counts.success.add(read_s + written_s, 0)

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """Count a model call: rows without and with padding, its duration, and why the batch was closed."""
        metrics, model = self._metrics, self._model
        metrics.batch_rows(model).observe(rows)
        metrics.batch_seconds(model).observe(seconds)
        metrics.padding_rows(model).inc(padded - rows)
        metrics.batches(model, reason).inc()
        with self._lock:
            self._counts.batches[rows].add(seconds)

    def finished(self, requests: Sequence[Finished]) -> None:
        """Count finished requests."""
        for outcome, number in Counter(request.outcome for request in requests).items():
            self._metrics.scheduled_requests(self._model, outcome).inc(number)
        queue, compute = self._metrics.queue_seconds(self._model), self._metrics.compute_seconds(self._model)
        with self._lock:
            counts = self._counts
            for rows, outcome, queue_s, compute_s in requests:
                queue.observe(queue_s)
                if outcome != "ok":
                    counts.fail.add(queue_s + compute_s)
                    continue
                compute.observe(compute_s)
                counts.rows += rows
                counts.last_ms = round(self._clock() * 1e3)
                # perf_analyzer gives up if the parts of a request have different counts.
                for part, seconds in ((counts.queue, queue_s), (counts.infer, compute_s)):
                    part.add(seconds)
                    counts.success.seconds += seconds
                for part in (counts.success, counts.input, counts.output):
                    part.count += 1

    def rejected(self, reason: str) -> None:
        """Count a request rejected at admission, by error code."""
        self._metrics.rejected_requests(self._model, reason).inc()
        with self._lock:
            self._counts.fail.count += 1

    def cancelled(self, rows: int) -> None:
        """Count a request whose client disconnected, and its unfinished rows."""
        self._metrics.cancellations(self._model).inc(rows)
        with self._lock:
            self._counts.fail.count += 1

    def early_exit(self, rows: int) -> None:
        """Count rows that met their tolerance before their last step."""
        self._metrics.early_exits(self._model).inc(rows)

    def reduce_max_batch(self, batch_rows: int) -> None:
        """Count that the device ran out of memory; ``batch_rows`` is the new largest batch."""
        self._metrics.batch_size_reductions(self._model, str(batch_rows)).inc()

    def device_lost(self) -> None:
        """Count a device that fails every call from now on."""
        self._metrics.devices_lost(self._model).inc()

    def worker_replaced(self) -> None:
        """Count a worker thread that died and was replaced."""
        self._metrics.replacements(self._model).inc()
