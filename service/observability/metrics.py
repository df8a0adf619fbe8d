"""Every metric of the service, in one place, in a registry of its own.

Label values are bounded: whatever callers send, a metric has at most `MAX_VALUES` values per label, and the rest
counts as `other`. Units are seconds and rows.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MAX_VALUES: Final = 64
_CHILDREN: Final = 1024  # combinations of label values that are cached
OTHER: Final = "other"
Metric = TypeVar("Metric", Counter, Gauge, Histogram)
MultiprocessMode = Literal["livemin", "livemax", "livesum", "max"]

_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMPUTE: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEPS: Final = (1, 2, 4, 8, 16, 64, 256, 1024, 4096, 16_384, 65_536, 300_000)
_DRIFT: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
_DISTANCE: Final = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
_REFERENCE: Final = (50, 90, 99)  # percentiles of the card that distances are held against
# Counted from zero on: of a series that begins at one, Prometheus' `increase` misses the first event.
_OUTCOMES: Final = ("ok", "deadline_exceeded", "model_failure")
_REASONS: Final = ("queue_full", "would_miss_deadline")


class Metrics:
    """The metric objects, and the few verbs by which the rest of the service touches them.

    Args:
        shared: folder in which the processes of one service keep their values; `render` adds those up.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self.shared = shared
        self.registry = CollectorRegistry()
        if shared is None:
            ProcessCollector(registry=self.registry)
        self._endpoint, self._model, self._code, self._operation = (Bounded() for _ in range(4))
        self._loaded: dict[str, tuple[str, str, str, str]] = {}
        self._referenced: set[str] = set()
        self._queued: dict[str, str] = {}
        self.ready = self._gauge("ign_ready", "1 while /readyz answers 200, else 0.", "livemin")
        self._started = self._gauge("ign_start_time_seconds", "Unix time of the latest start of a process.", "max")
        self._started.set(time.time())
        self._requests = self._counter("ign_requests", "Answers sent.", "endpoint", "status", "model")
        self._errors = self._counter("ign_http_errors", "Problem answers sent, by stable code.", "code")
        self._latency = self._histogram("ign_request_seconds", "Headers received to answer sent.", _LATENCY, "endpoint")
        self._codec = self._histogram(
            "ign_codec_seconds", "Turning bytes into rows or back, by call.", _COMPUTE, "operation"
        )
        self._distance = self._histogram(
            "ign_distance", "Mean |f(x) - x| of inputs, in the model's units.", _DISTANCE, "model", "endpoint"
        )
        self._drift = self._histogram(
            "ign_drift", "Mean |f(y) - y| of outputs, where asked for, likewise.", _DRIFT, "model", "endpoint"
        )
        self._reference = self._gauge(
            "ign_distance_reference",
            "Percentiles of mean |f(x) - x| of held-out real pictures, from the card.",
            "livemax",
            "model",
            "percentile",
        )
        self._info = self._gauge(
            "ign_model_info", "1 for every loaded model.", "livemax", "model", "digest", "provider", "reproducible"
        )
        self._sessions = self._gauge(
            "ign_sessions", "Batches of a model that can run side by side.", "livesum", "model"
        )
        self._row_steps = self._histogram("ign_row_steps", "Steps applied to a finished row.", _STEPS, "model")
        self._queue_rows = self._gauge("ign_queue_rows", "Rows waiting.", "livesum", "model")
        self.queue_limit = self._gauge(
            "ign_queue_limit_rows", "Rows that may wait, for each model, by IGN_QUEUE_ROWS.", "livesum"
        )
        self.queue_seconds = self._histogram(
            "ign_queue_seconds", "Submission until the first row enters a batch.", _LATENCY, "model"
        )
        self.compute_seconds = self._histogram(
            "ign_compute_seconds", "First row entering a batch until the last row is done.", _LATENCY, "model"
        )
        self.batch_rows = self._histogram("ign_batch_rows", "Rows in a batch, padding excluded.", _ROWS, "model")
        self.batch_seconds = self._histogram("ign_batch_seconds", "One batch on the device.", _COMPUTE, "model")
        self.padding_rows = self._counter("ign_padding_rows", "Rows computed only to fill a bucket.", "model")
        self.batches = self._counter("ign_batches", "Batches run, by what closed them.", "model", "flush")
        self.jobs = self._counter("ign_jobs", "Requests the scheduler ended, by outcome.", "model", "outcome")
        self.rejects = self._counter("ign_rejects", "Requests refused at admission.", "model", "reason")
        self.early_exits = self._counter("ign_early_exits", "Rows that met their tolerance early.", "model")
        self.cancellations = self._counter("ign_cancelled_rows", "Rows whose caller left.", "model")
        self.batch_size_reductions = self._counter(
            "ign_sheds", "Times the device ran out of memory, by the batch left.", "model", "rows"
        )
        self.losses = self._counter("ign_devices_lost", "Devices that fail every call until a new start.", "model")
        self.replacements = self._counter("ign_worker_replacements", "Executor threads that died.", "model")
        # To look a child up by its labels costs more than to count, so the children are cached by the given values.
        self._requests_of = _cached(self._requests, self._endpoint, str, self._model)
        self._latency_of = _cached(self._latency, self._endpoint)
        self._row_steps_of = _cached(self._row_steps, self._model)
        self._distance_of = _cached(self._distance, self._model, self._endpoint)
        self._drift_of = _cached(self._drift, self._model, self._endpoint)
        self._codec_of = _cached(self._codec, self._operation)

    def request(self, endpoint: str, status: int, seconds: float, state: Mapping[str, Any]) -> None:
        """Count an answer.

        Args:
            endpoint: the route's template; never a path.
            status: HTTP status; kept as its class, `2xx`.
            seconds: from the headers to the last byte.
            state: of the request: ``model``, the `name/version` of a loaded model, if one was involved, and
                ``problem``, the stable code of a problem answer.
        """
        self._requests_of(endpoint, f"{status // 100}xx", state.get("model")).inc()
        self._latency_of(endpoint).observe(seconds)
        if "problem" in state:
            self._errors.labels(self._code(state["problem"])).inc()

    def codec(self, operation: str, seconds: float) -> None:
        """One call that decodes or encodes pictures took this long."""
        self._codec_of(operation).observe(seconds)

    def rows(
        self, model: str, endpoint: str, steps: Iterable[int], distances: Iterable[float], drifts: Iterable[float] = ()
    ) -> None:
        """A request's rows are done.

        Args:
            model: `name/version` of a loaded model.
            endpoint: the route's template: uploads and noise lie at other distances.
            steps: applied, for each row.
            distances: mean |f(x) − x| of the input, for each row, in the model's units.
            drifts: mean |f(y) − y| of the output, likewise, where it was measured.
        """
        children = self._row_steps_of(model), self._distance_of(model, endpoint), self._drift_of(model, endpoint)
        for child, values in zip(children, (steps, distances, drifts), strict=True):
            for value in values:
                child.observe(value)

    def loaded(
        self,
        model: str,
        *,
        digest: str,
        provider: str,
        reproducible: str,
        quantiles: Sequence[float] | None = None,
        sessions: int = 1,
    ) -> None:
        """A model began to serve; what an earlier file of the same version said of itself is dropped.

        Args:
            model: `name/version`.
            digest: of its file, shortened.
            provider: of onnxruntime, by its name there.
            reproducible: whether its rows are the same bits at every batch size.
            quantiles: the card's `distance_quantiles`, 101 of them, where it has any.
            sessions: how many batches of it can run side by side.
        """
        self.unloaded(model)
        labels = (self._model(model), digest, provider, reproducible)
        self._info.labels(*labels).set(1)
        self._loaded[model] = labels
        self._sessions.labels(labels[0]).set(sessions)
        if quantiles:
            for percent in _REFERENCE:
                self._reference.labels(labels[0], str(percent)).set(quantiles[percent])
            self._referenced.add(labels[0])

    def unloaded(self, model: str) -> None:
        """A model no longer serves."""
        labels = self._loaded.pop(model, None)
        if labels is None:
            return
        if self.shared is None:
            self._info.remove(*labels)
            self._sessions.remove(labels[0])
            if labels[0] in self._referenced:
                self._referenced.remove(labels[0])
                for percent in _REFERENCE:
                    self._reference.remove(labels[0], str(percent))
        else:  # prometheus_client cannot remove from a shared file
            self._info.labels(*labels).set(0)
            self._sessions.labels(labels[0]).set(0)

    def scheduler(self, model: str) -> "SchedulerMetrics":
        """The observer for one model's scheduler."""
        return SchedulerMetrics(self, self._model(model))

    def set_queue_rows(self, waiting: Mapping[str, int]) -> None:
        """Set the rows waiting now, by `name/version`. A model that is not in ``waiting`` has none."""
        for model in self._queued.keys() - waiting.keys():
            self._queue_rows.labels(self._queued.pop(model)).set(0)
        for model, rows in waiting.items():
            label = self._queued[model] = self._model(model)
            self._queue_rows.labels(label).set(rows)

    def render(self) -> tuple[bytes, str]:
        """The Prometheus text format and its content type."""
        registry = self.registry
        if self.shared is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, str(self.shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _gauge(self, name: str, text: str, together: MultiprocessMode, *labels: str) -> Gauge:
        """A gauge; ``together``: how the values of several processes become one."""
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=together)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def forget_process(pid: int, shared: Path) -> None:
    """A process that kept its values in this folder has ended: its gauges count no more, its counters do."""
    mark_process_dead(pid, str(shared))  # type: ignore[no-untyped-call]


class SchedulerMetrics:
    """What one model's scheduler reports: its `SchedulerObserver`, called from two threads.

    Args:
        metrics: the metric objects.
        model: label value.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._value = Bounded()
        # Looked up once: these are touched for every batch.
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._compute_seconds = metrics.compute_seconds.labels(model)
        self._batches, self._jobs = cache(metrics.batches.labels), cache(metrics.jobs.labels)
        self._batch_rows = metrics.batch_rows.labels(model)
        self._batch_seconds = metrics.batch_seconds.labels(model)
        self._padding_rows = metrics.padding_rows.labels(model)
        self._begin()

    def _begin(self) -> None:
        for outcome in _OUTCOMES:
            self._jobs(self._model, self._value(outcome))
        for reason in _REASONS:
            self._metrics.rejects.labels(self._model, self._value(reason))
        metrics = self._metrics
        for counter in (metrics.early_exits, metrics.cancellations, metrics.losses, metrics.replacements):
            counter.labels(self._model)

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """A batch ran: useful rows, rows with padding, seconds on the device, and what closed it."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)
        self._padding_rows.inc(padded - rows)
        self._batches(self._model, self._value(reason)).inc()

    def finished(self, rows: int, outcome: str, queue_s: float, compute_s: float) -> None:
        """A request of so many rows ended, with `ok` or an error's code, after waiting and computing so long."""
        self._jobs(self._model, self._value(outcome)).inc()
        self._queue_seconds.observe(queue_s)
        if outcome == "ok":
            self._compute_seconds.observe(compute_s)

    def rejected(self, reason: str) -> None:
        """A request was refused at admission, with an error's code."""
        self._metrics.rejects.labels(self._model, self._value(reason)).inc()

    def cancelled(self, rows: int) -> None:
        """A caller left so many unfinished rows."""
        self._metrics.cancellations.labels(self._model).inc(rows)

    def early_exit(self, rows: int) -> None:
        """So many rows met their tolerance before their last step."""
        self._metrics.early_exits.labels(self._model).inc(rows)

    def reduce_max_batch(self, batch_rows: int) -> None:
        """The device ran out of memory; the largest batch is now this."""
        self._metrics.batch_size_reductions.labels(self._model, str(batch_rows)).inc()

    def device_lost(self) -> None:
        """A device fails every call from now on."""
        self._metrics.losses.labels(self._model).inc()

    def worker_replaced(self) -> None:
        """A worker's thread died and another one replaced it."""
        self._metrics.replacements.labels(self._model).inc()


def _cached(metric: Metric, *limiters: Callable[[str], str]) -> Callable[..., Metric]:
    """A function from label values to the child of ``metric``; None as a value becomes `none`."""

    def child(*values: str | None) -> Metric:
        limited = ["none" if value is None else limit(value) for limit, value in zip(limiters, values, strict=True)]
        return metric.labels(*limited)

    return lru_cache(maxsize=_CHILDREN)(child)


class Bounded:
    """Lets the first `MAX_VALUES` distinct label values through and turns the rest into `other`."""

    def __init__(self, limit: int = MAX_VALUES) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value, or `other`."""
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(value)
        return value
