"""All Prometheus metrics of the service, in a registry of their own.

Each label has at most 64 different values, `caller` 1000; further values become `other`, so that callers cannot create
an unlimited number of series. Times are in seconds, batch and queue sizes in rows.
"""

import platform
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from service import __version__
from service.observability import exposition
from service.observability.labels import LabelLimiter, cached_children, observe_all
from service.observability.trace_context import TraceContext
from service.scheduling.observer import Finished, SchedulerObserver

MAX_CALLERS: Final = 1000
MultiprocessMode = Literal["livemin", "livemax", "livesum", "max"]

_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMPUTE: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEPS: Final = (1, 2, 4, 8, 16, 64, 256, 1024, 4096, 16_384, 65_536, 300_000)
_DRIFT: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
_DISTANCE: Final = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
_REFERENCE: Final = (50, 90, 99)  # percentiles of the card that are exported for comparison with ign_distance
# These series exist from the start with value 0. `increase` misses the first event of a series that starts at 1.
_OUTCOMES: Final = ("ok", "deadline_exceeded", "model_failure")
_REASONS: Final = ("queue_full", "would_miss_deadline")
_BUILD: Final = ("version", "python", "onnxruntime")
_CLOSED: Final = ("limit", "head_timeout", "head_too_large", "malformed", "pipelining", "send_timeout")


class Metrics:
    """The metric objects, and methods that record events. Thread-safe, as prometheus_client is.

    Args:
        shared: folder for the values of all processes of one service, which `render` combines; None for one process.
    """

    def __init__(self, shared: Path | None = None) -> None:
        # Series of creation times: they double the series of counters, and Prometheus 3 does not need them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.shared = shared
        self.registry = CollectorRegistry()
        if shared is None:
            ProcessCollector(registry=self.registry)
        self._endpoint, self._model, self._code, self._operation = (LabelLimiter() for _ in range(4))
        self._caller = LabelLimiter(MAX_CALLERS)
        self._loaded: dict[str, tuple[str, str, str, str]] = {}
        self._referenced: set[str] = set()
        self._queued: dict[str, str] = {}
        self.ready = self._gauge("ign_ready", "1 while /readyz answers 200, else 0.", "livemin")
        self._started = self._gauge("ign_start_time_seconds", "Unix time at which the newest process started.", "max")
        self._started.set(time.time())
        self._build = self._gauge(
            "ign_build_info", "1; versions of the service and of what it runs on.", "livemax", *_BUILD
        )
        self._requests = self._counter("ign_requests", "Responses sent.", "endpoint", "status", "model")
        self._errors = self._counter("ign_http_errors", "Error responses sent, by error code.", "code")
        self._latency = self._histogram(
            "ign_request_seconds", "From request headers to the end of the response.", _LATENCY, "endpoint", "model"
        )
        self.in_flight = self._gauge("ign_requests_in_flight", "Requests in flight, without probes.", "livesum")
        self._caller_requests = self._counter(
            "ign_caller_requests", "Responses sent to callers with an API key.", "caller", "status"
        )
        self._caller_row_steps = self._counter(
            "ign_caller_row_steps", "Steps applied to finished rows of callers with an API key.", "caller"
        )
        self._codec = self._histogram(
            "ign_codec_seconds", "One call that decodes or encodes images.", _COMPUTE, "operation"
        )
        self.codec_waiting = self._gauge(
            "ign_codec_waiting_jobs", "Jobs waiting for a thread of the codec pool.", "livesum"
        )
        self._distance = self._histogram(
            "ign_distance", "Mean |f(x) - x| of inputs, in the model's units.", _DISTANCE, "model", "endpoint"
        )
        self._drift = self._histogram(
            "ign_drift", "Mean |f(y) - y| of outputs, if requested, in the model's units.", _DRIFT, "model", "endpoint"
        )
        self._reference = self._gauge(
            "ign_distance_reference",
            "Percentiles of mean |f(x) - x| of held-out real images, from the model card.",
            "livemax",
            "model",
            "percentile",
        )
        self._info = self._gauge(
            "ign_model_info", "1 for each loaded model.", "livemax", "model", "digest", "provider", "reproducible"
        )
        self._instances = self._gauge("ign_model_instances", "Instances of a loaded model.", "livesum", "model")
        self._row_steps = self._histogram("ign_row_steps", "Steps applied to a finished row.", _STEPS, "model")
        self._queue_rows = self._gauge("ign_queue_rows", "Rows waiting for a batch.", "livesum", "model")
        self.queue_limit = self._gauge(
            "ign_queue_limit_rows", "Most rows that may wait for one model (IGN_QUEUE_ROWS).", "livesum"
        )
        self.queue_seconds = self._histogram(
            "ign_queue_seconds", "From submission until the first row enters a batch.", _LATENCY, "model"
        )
        self.compute_seconds = self._histogram(
            "ign_compute_seconds", "From the first row entering a batch until the last row is done.", _LATENCY, "model"
        )
        self.batch_rows = self._histogram("ign_batch_rows", "Rows in a batch, padding excluded.", _ROWS, "model")
        self.batch_seconds = self._histogram("ign_batch_seconds", "One model call.", _COMPUTE, "model")
        self.open_connections = self._gauge("ign_open_connections", "Open connections.", "livesum")
        self.connection_limit = self._gauge(
            "ign_open_connections_limit", "Most open connections (IGN_MAX_OPEN_CONNECTIONS, ulimit -n).", "livesum"
        )
        self._closed_connections = self._counter(
            "ign_closed_connections", "Connections that the service closed because of a limit.", "reason"
        )
        for reason in _CLOSED:
            self._closed_connections.labels(reason)
        self.files_exhausted = self._counter(
            "ign_files_exhausted", "Seconds in which no file could be opened and new connections were closed."
        )
        self.dropped_log_lines = self._counter(
            "ign_dropped_log_lines", "Lines of the log that could not be written in time."
        )
        self.padding_rows = self._counter("ign_padding_rows", "Padding rows computed to fill a bucket.", "model")
        self.batches = self._counter("ign_batches", "Model calls, by why the batch was closed.", "model", "reason")
        self.scheduled_requests = self._counter(
            "ign_scheduled_requests", "Requests that the scheduler finished, by outcome.", "model", "outcome"
        )
        self.rejected_requests = self._counter(
            "ign_rejected_requests", "Requests rejected at admission.", "model", "reason"
        )
        self.early_exits = self._counter(
            "ign_early_exits", "Rows that met their tolerance before their last step.", "model"
        )
        self.cancellations = self._counter(
            "ign_cancelled_rows", "Unfinished rows dropped because the client disconnected.", "model"
        )
        self.batch_size_reductions = self._counter(
            "ign_batch_size_reductions",
            "Times the device ran out of memory, by the new largest batch.",
            "model",
            "rows",
        )
        self.devices_lost = self._counter("ign_devices_lost", "Devices that fail every call until a restart.", "model")
        self.replacements = self._counter(
            "ign_worker_replacements", "Worker threads that died and were replaced.", "model"
        )
        self._requests_of = cached_children(self._requests, self._endpoint, str, self._model)
        self._latency_of = cached_children(self._latency, self._endpoint, self._model)
        self._errors_of = cached_children(self._errors, self._code)
        self._row_steps_of = cached_children(self._row_steps, self._model)
        self._distance_of = cached_children(self._distance, self._model, self._endpoint)
        self._drift_of = cached_children(self._drift, self._model, self._endpoint)
        self._codec_of = cached_children(self._codec, self._operation)
        self._caller_requests_of = cached_children(self._caller_requests, self._caller, str)
        self._caller_row_steps_of = cached_children(self._caller_row_steps, self._caller)

    def describe_build(self, onnxruntime: str) -> None:
        """Export the versions of the service, of Python and of onnxruntime."""
        self._build.labels(__version__, platform.python_version(), onnxruntime).set(1)

    def add_callers(self, names: Collection[str]) -> None:
        """Start the counters of these names of API keys at 0; `increase` misses the first event of a new series."""
        for name in names:
            self._caller_requests_of(name, "2xx")
            self._caller_row_steps_of(name)

    def request(self, endpoint: str, status: int, seconds: float, state: Mapping[str, Any]) -> None:
        """Count a response.

        Args:
            endpoint: template of the route, never the path of the request.
            status: HTTP status; stored as its class, such as `2xx`.
            seconds: from the request headers to the last byte of the response.
            state: state of the request: ``model``, the `name/version` of a loaded model, if it used one; ``problem``,
                the code of an error response; ``api_key``, the name of the caller's key; ``trace``, its position in a
                trace, which becomes an exemplar if the trace is recorded.
        """
        self.requests(endpoint, status, [(seconds, state)])

    def requests(self, endpoint: str, status: int, ended: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
        """Count several responses; ``ended`` has the seconds and the state of each, and one model."""
        model, status_class = ended[0][1].get("model"), f"{status // 100}xx"
        self._requests_of(endpoint, status_class, model).inc(len(ended))
        latency, plain = self._latency_of(endpoint, model), list[float]()
        for seconds, state in ended:
            trace: TraceContext | None = state.get("trace")
            if trace is not None and trace.sampled:
                latency.observe(seconds, {"trace_id": trace.trace_id})
            else:
                plain.append(seconds)
            if "api_key" in state:
                self._caller_requests_of(state["api_key"], status_class).inc()
            if "problem" in state:
                self._errors_of(state["problem"]).inc()
        observe_all(latency, plain)

    def codec(self, operation: str, seconds: float) -> None:
        """Record the duration of one call that decodes or encodes images."""
        self._codec_of(operation).observe(seconds)

    def connection_closed(self, reason: str) -> None:
        """Count a connection that the service closed because of a limit."""
        self._closed_connections.labels(reason).inc()

    def rows(
        self,
        model: str,
        endpoint: str,
        steps: Sequence[int],
        distances: Sequence[float],
        drifts: Sequence[float] = (),
        *,
        api_key: str | None = None,
    ) -> None:
        """Record the finished rows of requests.

        Args:
            model: `name/version` of a loaded model.
            endpoint: template of the route; a label, because uploads and noise have different distances.
            steps: steps applied to each row.
            distances: mean |f(x) − x| of the input of each row, in the model's units.
            drifts: mean |f(y) − y| of the output of each row, if it was measured.
            api_key: name of the caller's API key, if it has one.
        """
        if api_key is not None:
            self._caller_row_steps_of(api_key).inc(sum(steps))
        children = self._row_steps_of(model), self._distance_of(model, endpoint), self._drift_of(model, endpoint)
        for child, values in zip(children, (steps, distances, drifts), strict=True):
            observe_all(child, values)

    def loaded(
        self,
        model: str,
        *,
        digest: str,
        provider: str,
        reproducible: str,
        quantiles: Sequence[float] | None = None,
        instances: int = 1,
    ) -> None:
        """Describe a model that starts to serve; replaces the description of an earlier file of this version.

        Args:
            model: `name/version`.
            digest: shortened digest of its file.
            provider: name of the onnxruntime execution provider.
            reproducible: `exact` if a row has the same bits at every batch size, else `close`.
            quantiles: `distance_quantiles` of the card (101 values), if it has them.
            instances: number of model instances, each of which runs one batch at a time.
        """
        self.unloaded(model)
        labels = (self._model(model), digest, provider, reproducible)
        self._info.labels(*labels).set(1)
        self._loaded[model] = labels
        self._instances.labels(labels[0]).set(instances)
        if quantiles:
            for percent in _REFERENCE:
                self._reference.labels(labels[0], str(percent)).set(quantiles[percent])
            self._referenced.add(labels[0])

    def unloaded(self, model: str) -> None:
        """Remove the description of a model that no longer serves."""
        labels = self._loaded.pop(model, None)
        if labels is None:
            return
        if self.shared is None:
            self._info.remove(*labels)
            self._instances.remove(labels[0])
            if labels[0] in self._referenced:
                self._referenced.remove(labels[0])
                for percent in _REFERENCE:
                    self._reference.remove(labels[0], str(percent))
        else:  # prometheus_client cannot remove series from a shared file
            self._info.labels(*labels).set(0)
            self._instances.labels(labels[0]).set(0)

    def model_label(self, model: str) -> str:
        """The value of the label `model` for a `name/version`; `other` beyond `MAX_VALUES` models."""
        return self._model(model)

    def set_queue_rows(self, waiting: Mapping[str, int]) -> None:
        """Set the rows waiting now, by `name/version`. A model that is not in ``waiting`` has none."""
        for model in self._queued.keys() - waiting.keys():
            self._queue_rows.labels(self._queued.pop(model)).set(0)
        for model, rows in waiting.items():
            label = self._queued[model] = self._model(model)
            self._queue_rows.labels(label).set(rows)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, and their content type; ``accept`` is the header of the scrape, see `exposition.render`."""
        return exposition.render(self.registry, self.shared, accept)

    def _gauge(self, name: str, text: str, mode: MultiprocessMode, *labels: str) -> Gauge:
        """A gauge; ``mode`` is how prometheus_client combines the values of several processes."""
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class SchedulerMetrics(SchedulerObserver):
    """The `SchedulerObserver` of one model. Called from the event loop and the workers.

    Args:
        metrics: the metric objects.
        model: `name/version`.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model = metrics.model_label(model)
        limiter = LabelLimiter()
        # Looked up once, because every batch uses them.
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._compute_seconds = metrics.compute_seconds.labels(model)
        self._batches = cached_children(metrics.batches, str, limiter)
        self._scheduled_requests = cached_children(metrics.scheduled_requests, str, limiter)
        self._rejected_requests = cached_children(metrics.rejected_requests, str, limiter)
        self._batch_rows = metrics.batch_rows.labels(model)
        self._batch_seconds = metrics.batch_seconds.labels(model)
        self._padding_rows = metrics.padding_rows.labels(model)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        for outcome in _OUTCOMES:
            self._scheduled_requests(self._model, outcome)
        for reason in _REASONS:
            self._rejected_requests(self._model, reason)
        metrics = self._metrics
        for counter in (metrics.early_exits, metrics.cancellations, metrics.devices_lost, metrics.replacements):
            counter.labels(self._model)

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """Count a model call: rows without and with padding, its duration, and why the batch was closed."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)
        self._padding_rows.inc(padded - rows)
        self._batches(self._model, reason).inc()

    def finished(self, requests: Sequence[Finished]) -> None:
        """Count finished requests."""
        done = [request for request in requests if request.outcome == "ok"]
        for outcome in {request.outcome for request in requests}:
            number = sum(request.outcome == outcome for request in requests)
            self._scheduled_requests(self._model, outcome).inc(number)
        observe_all(self._queue_seconds, [request.queue_s for request in requests])
        observe_all(self._compute_seconds, [request.compute_s for request in done])

    def rejected(self, reason: str) -> None:
        """Count a request rejected at admission, by error code."""
        self._rejected_requests(self._model, reason).inc()

    def cancelled(self, rows: int) -> None:
        """Count unfinished rows of a client that disconnected."""
        self._metrics.cancellations.labels(self._model).inc(rows)

    def early_exit(self, rows: int) -> None:
        """Count rows that met their tolerance before their last step."""
        self._metrics.early_exits.labels(self._model).inc(rows)

    def reduce_max_batch(self, batch_rows: int) -> None:
        """Count that the device ran out of memory; ``batch_rows`` is the new largest batch."""
        self._metrics.batch_size_reductions.labels(self._model, str(batch_rows)).inc()

    def device_lost(self) -> None:
        """Count a device that fails every call from now on."""
        self._metrics.devices_lost.labels(self._model).inc()

    def worker_replaced(self) -> None:
        """Count a worker thread that died and was replaced."""
        self._metrics.replacements.labels(self._model).inc()
