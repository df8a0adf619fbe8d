"""What the scheduler of one model reports: counted in the metrics, and for the Open Inference Protocol."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.observability.metrics import Metrics
from service.scheduling.observer import Finished, SchedulerObserver

# These series exist from the start with value 0. `increase` misses the first event of a series that starts at 1.
_OUTCOMES: Final = ("ok", "deadline_exceeded", "model_failure")
_REASONS: Final = ("queue_full", "would_miss_deadline")


_PARTS: Final = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


@dataclass(slots=True)
class Duration:
    """Number of events and their total duration in seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count events that took so long together."""
        self.count += count
        self.seconds += seconds

    def report(self) -> dict[str, int]:
        """As the protocol has it, in nanoseconds."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


class ModelStatistics(SchedulerObserver):
    """Counts what the scheduler of one model, `name/version`, reports. Belongs to the event loop."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._model, self._clock = metrics, model, clock
        # Since the model was loaded; the metrics count since the process started.
        self._rows = self._last_ms = 0  # of successful requests, and the Unix time at which the last one ended
        self._parts = {name: Duration() for name in _PARTS}
        self._batches = defaultdict[int, Duration](Duration)  # by number of rows
        for outcome in _OUTCOMES:
            metrics.scheduled_requests(model, outcome)
        for reason in _REASONS:
            metrics.rejected_requests(model, reason)
        counts = metrics.early_exits, metrics.padding_rows, metrics.cancellations, metrics.devices_lost
        for counter in (*counts, metrics.replacements):
            counter(model)

    def report(self) -> dict[str, Any]:
        """What happened since the model was loaded, consistent, as the protocol has it.

        A failure that was rejected or cancelled took 0 s; tensors have times after the requests of the protocol only.
        """
        nothing = {"compute_input": Duration().report(), "compute_output": Duration().report()}
        return {
            "last_inference": self._last_ms,
            "inference_count": self._rows,
            "execution_count": sum(spent.count for spent in self._batches.values()),
            "inference_stats": {name: spent.report() for name, spent in self._parts.items()},
            "batch_stats": [
                {"batch_size": rows, "compute_infer": spent.report(), **nothing}
                for rows, spent in sorted(self._batches.items())
            ],
        }

    def tensors(self, read_s: float, written_s: float) -> None:
        """Add the times of parsing and serialising the tensors of a request that `finished` has counted."""
        self._parts["compute_input"].add(read_s, 0)
        self._parts["compute_output"].add(written_s, 0)
        self._parts["success"].add(read_s + written_s, 0)

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """Count a model call: rows without and with padding, its duration, and why the batch was closed."""
        metrics, model = self._metrics, self._model
        metrics.batch_rows(model).observe((rows,))
        metrics.batch_seconds(model).observe((seconds,))
        if padded > rows:
            metrics.padding_rows(model).inc(padded - rows)
        metrics.batches(model, reason).inc()
        self._batches[rows].add(seconds)

    def finished(self, requests: Sequence[Finished]) -> None:
        """Count finished requests."""
        self._metrics.queue_seconds(self._model).observe([request.queue_s for request in requests])
        succeeded = [request for request in requests if request.outcome == "ok"]
        for request in requests if len(succeeded) < len(requests) else ():
            if request.outcome != "ok":
                self._metrics.scheduled_requests(self._model, request.outcome).inc()
                self._parts["fail"].add(request.queue_s + request.compute_s)
        if succeeded:
            self._succeeded(succeeded)

    def _succeeded(self, requests: Sequence[Finished]) -> None:
        compute, parts, count = [request.compute_s for request in requests], self._parts, len(requests)
        self._metrics.scheduled_requests(self._model, "ok").inc(count)
        self._metrics.compute_seconds(self._model).observe(compute)
        self._rows += sum([request.rows for request in requests])
        self._last_ms = round(self._clock() * 1e3)
        queue_s, compute_s = sum([request.queue_s for request in requests]), sum(compute)
        # perf_analyzer gives up if the parts of a request have different counts.
        parts["queue"].add(queue_s, count)
        parts["compute_infer"].add(compute_s, count)
        parts["success"].add(queue_s + compute_s, count)
        for name in ("compute_input", "compute_output"):
            parts[name].count += count

    def rejected(self, reason: str) -> None:
        """Count a request rejected at admission, by error code."""
        self._metrics.rejected_requests(self._model, reason).inc()
        self._parts["fail"].count += 1

    def cancelled(self, rows: int) -> None:
        """Count a request whose client disconnected, and its unfinished rows."""
        self._metrics.cancellations(self._model).inc(rows)
        self._parts["fail"].count += 1

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
