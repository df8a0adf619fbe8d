"""What the scheduler of one model reports: counted in the metrics, and for the Open Inference
Protocol.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

from service.observability.metrics import Metrics
from service.scheduling.report import Finished, ModelCall, Report

# These series exist from the start with value 0. `increase` misses the first event of a series that
# starts at 1.
_OUTCOMES: Final = ("ok", "deadline_exceeded", "model_failure")
_REASONS: Final = ("queue_full", "would_miss_deadline")


class ModelStatistics:
    """Counts what the scheduler of one model, `name/version`, reports. Belongs to the event
    loop.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        # Since the model was loaded; the metrics count since the process started.
        self._succeeded = 0
        self._rows = 0  # of successful requests
        self._last_ms = 0  # Unix time at which the last of them ended
        # Seconds of the parts of successful requests, in the order of the protocol.
        self._seconds = {
            "queue": 0.0,
            "compute_input": 0.0,
            "compute_infer": 0.0,
            "compute_output": 0.0,
        }
        self._failed = 0
        self._failed_s = 0.0
        # Model calls by number of rows, and their seconds.
        self._calls = Counter[int]()
        self._call_s = defaultdict[int, float](float)
        for outcome in _OUTCOMES:
            metrics.scheduled_requests(model, outcome)
        for reason in _REASONS:
            metrics.rejected_requests(model, reason)
        for counter in (
            metrics.early_exits,
            metrics.padding_rows,
            metrics.cancellations,
            metrics.devices_lost,
            metrics.replacements,
        ):
            counter(model)

    def report(self) -> dict[str, Any]:
        """What happened since the model was loaded, consistent, as the protocol has it.

        A failure that was rejected or cancelled took 0 s; tensors have times after the requests of
        the protocol only.
        """
        succeeded = self._succeeded
        return {
            "last_inference": self._last_ms,
            "inference_count": self._rows,
            "execution_count": self._calls.total(),
            "inference_stats": {
                "success": _duration(succeeded, sum(self._seconds.values())),
                "fail": _duration(self._failed, self._failed_s),
                **{part: _duration(succeeded, seconds) for part, seconds in self._seconds.items()},
                "cache_hit": _duration(),
                "cache_miss": _duration(),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_infer": _duration(count, self._call_s[rows]),
                    "compute_input": _duration(),
                    "compute_output": _duration(),
                }
                for rows, count in sorted(self._calls.items())
            ],
        }

    def tensors(self, read_s: float, written_s: float) -> None:
        """Add the times of parsing and serialising the tensors of a request that has been
        reported.
        """
        self._seconds["compute_input"] += read_s
        self._seconds["compute_output"] += written_s

    def take(self, report: Report) -> None:
        """Count what a scheduler of the model reports."""
        metrics = self._metrics
        model = self._model
        if report.calls:
            self._count_calls(report.calls)
        if report.finished:
            self._count_finished(report.finished)
        self._failed += len(report.rejected) + len(report.cancelled)
        for code in report.rejected:
            metrics.rejected_requests(model, code).inc()
        for rows in report.limits:
            metrics.batch_size_reductions(model, str(rows)).inc()
        for counter, count in (
            (metrics.cancellations, sum(report.cancelled)),
            (metrics.early_exits, report.early_exits),
            (metrics.devices_lost, report.devices_lost),
            (metrics.replacements, report.workers_replaced),
        ):
            if count:
                counter(model).inc(count)

    def _count_calls(self, calls: Sequence[ModelCall]) -> None:
        metrics = self._metrics
        model = self._model
        metrics.batch_rows(model).observe([call.rows for call in calls])
        metrics.batch_seconds(model).observe([call.seconds for call in calls])
        for call in calls:
            if call.padded > call.rows:
                metrics.padding_rows(model).inc(call.padded - call.rows)
            metrics.batches(model, call.reason).inc()
            self._calls[call.rows] += 1
            self._call_s[call.rows] += call.seconds

    def _count_finished(self, requests: Sequence[Finished]) -> None:
        metrics = self._metrics
        model = self._model
        metrics.queue_seconds(model).observe([request.queue_s for request in requests])
        succeeded = [request for request in requests if request.outcome == "ok"]
        for request in requests:
            if request.outcome != "ok":
                metrics.scheduled_requests(model, request.outcome).inc()
                self._failed += 1
                self._failed_s += request.queue_s + request.compute_s
        if not succeeded:
            return
        rows, _, queue, compute = zip(*succeeded, strict=True)
        metrics.scheduled_requests(model, "ok").inc(len(succeeded))
        metrics.compute_seconds(model).observe(compute)
        self._succeeded += len(succeeded)
        self._rows += sum(rows)
        self._last_ms = round(time.time() * 1e3)
        # perf_analyzer gives up if the parts of a request have different counts, so all have one.
        self._seconds["queue"] += sum(queue)
        self._seconds["compute_infer"] += sum(compute)


def _duration(count: int = 0, seconds: float = 0.0) -> dict[str, int]:
    """Events and their total duration, as the protocol has it, in nanoseconds."""
    return {"count": count, "ns": round(seconds * 1e9)}
