"""All Prometheus metrics of the service, in a registry of their own.

Each label has at most 64 different values, `caller` 1000; further values become `other`, so that
callers cannot create an unlimited number of series. Times are in seconds, batch and queue sizes in
rows.

A scrape must not hold up the event loop, so a thread makes its text, and all scrapes of a second
share it.
"""

import asyncio
import logging
import operator
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import Exemplar, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service import __version__
from service.domain.errors import NotReady
from service.domain.tasks import Result
from service.environment import onnxruntime_version
from service.observability.logs import SAMPLED, RequestRecord
from service.observability.shared import SharedFiles, SharedTexts, add_up

CACHE_S: Final = 1.0
_OPENMETRICS: Final = "application/openmetrics-text"

MAX_VALUES: Final = 64
MAX_MODELS: Final = 256
MAX_CALLERS: Final = 1000
OTHER: Final = "other"
_MAX_NEW: Final = 1 << 13  # values of a series that wait to be added up: 300 KB
_LOG = logging.getLogger(__name__)

_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COMPUTE: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEPS: Final = (1, 2, 4, 8, 16, 64, 256, 1024, 4096, 16_384, 65_536, 300_000)
_DRIFT: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
_DISTANCE = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2)
_CLOSED: Final = (
    "age",
    "limit",
    "head_timeout",
    "head_too_large",
    "malformed",
    "pipelining",
    "send_timeout",
)


def label_limiter(limit: int = MAX_VALUES) -> Callable[[str], str]:
    """A function that keeps the first ``limit`` different label values and maps all others to
    `other`.
    """
    seen: set[str] = set()

    def limited(value: str) -> str:
        if value not in seen and len(seen) >= limit:
            return OTHER
        seen.add(value)
        return value

    return limited


class Series:
    """The values of one set of labels. Any thread may call it; one at a time observes.

    They are added up when they are read: the event loop records several of every request, and the
    histogram of prometheus_client takes a lock and five calls for each.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds)
        self._lock = threading.Lock()
        self._new = list[float]()
        # of all other values
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}  # the latest one of each bucket

    def observe(self, values: Sequence[float]) -> None:
        """Count values."""
        self._new.extend(values)
        if len(self._new) > _MAX_NEW:
            self.read()

    def exemplify(self, value: float, labels: dict[str, str]) -> None:
        """Let a value that is counted stand for its bucket."""
        self._exemplars[int(self._bounds.searchsorted(value))] = Exemplar(
            labels, value, time.time()
        )

    def read(self) -> tuple[list[int], float, dict[int, Exemplar]]:
        """How many values each bucket and all buckets below it have, the sum of all values, and
        exemplars by bucket.
        """
        with self._lock:
            # Values that come meanwhile stay: each of these is one operation of the interpreter.
            values = self._new[: len(self._new)]
            del self._new[: len(values)]
            if values:
                places = self._bounds.searchsorted(values)
                self._counts += np.bincount(places, minlength=len(self._counts))
                self._sum += float(np.sum(values))
            return self._counts.cumsum().tolist(), self._sum, self._exemplars.copy()


class Histogram(Collector):
    """A histogram with labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series with these values of the labels."""
        return self._series.setdefault(values, Series(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """The histogram as prometheus_client writes it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, series in self._series.copy().items():
            counts, total, exemplars = series.read()
            # The type says that an exemplar is no None, but prometheus_client writes none for it.
            buckets: list[Any] = [
                (*pair, exemplars.get(i)) for i, pair in enumerate(zip(names, counts, strict=True))
            ]
            family.add_metric(labels, buckets, total)
        yield family


class Metrics:
    """The metric objects, and methods that record events. Thread-safe, as prometheus_client is.

    A metric with labels is a function from their values to one series, such as
    ``metrics.batches("mnist/7", "full")``. ``shared`` is where this process, one of several, and
    the others leave their metrics; `scrape` combines them.
    """

    def __init__(self, shared: SharedTexts | None = None) -> None:
        # Series of creation times double the series of counters, and Prometheus 3 does not need
        # them.
        disable_created_metrics()
        self.shared = shared
        self.registry = registry = CollectorRegistry()
        # How the gauges of two processes become one, by name; other metrics are added.
        self._combine: dict[str, Callable[[float, float], float]] = {}
        # metrics of the processes that this one replaces
        self._earlier = shared.earlier() if shared else ""
        self._warn_once = lru_cache(_LOG.warning)
        self._rendering = threading.Lock()
        self._publishing = threading.Lock()
        self._latest: dict[str, tuple[float, asyncio.Task[tuple[bytes, str]]]] = {}
        if shared is None:
            ProcessCollector(registry=registry)
        self._limits = defaultdict(
            label_limiter,
            model=label_limiter(MAX_MODELS),
            caller=label_limiter(MAX_CALLERS),
        )
        self.model_label = self._limits["model"]
        self._queued = set[str]()  # models whose rows have been waiting

        def gauge(name: str, text: str, *labels: str, combine: Any = operator.add) -> Gauge:
            self._combine[name] = combine
            return Gauge(name, text, labels, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=registry)

        def counters(name: str, text: str, *labels: str) -> Callable[..., Counter]:
            return self._children(Counter(name, text, labels, registry=registry).labels, labels)

        def histograms(
            name: str, text: str, bounds: tuple[float, ...], *labels: str
        ) -> Callable[..., Series]:
            return self._children(Histogram(name, text, labels, bounds, registry).labels, labels)

        # The process
        self.ready = gauge("ign_ready", "1 while /readyz answers 200, else 0.", combine=min)
        started = gauge(
            "ign_start_time_seconds", "Unix time at which the newest process started.", combine=max
        )
        started.set(time.time())
        versions = gauge(
            "ign_build_info",
            "1; versions of the service and of what it runs on.",
            *("version", "python", "onnxruntime"),
            combine=max,
        )
        versions.labels(__version__, platform.python_version(), onnxruntime_version()).set(1)
        self.dropped_log_lines = counter(
            "ign_dropped_log_lines", "Lines of the log that could not be written, or not in time."
        )
        self.process_replacements = counters(
            "ign_process_replacements",
            "Server processes that were replaced: they ended, or hung and were killed.",
            "reason",
        )
        for reason in ("ended", "hung"):
            self.process_replacements(reason)

        # Connections and requests
        self.open_connections = gauge("ign_open_connections", "Open connections.")
        self.connection_limit = gauge(
            "ign_open_connections_limit",
            "Most open connections (IGN_MAX_OPEN_CONNECTIONS, ulimit -n).",
        )
        self.closed_connections = counters(
            "ign_closed_connections",
            "Connections that the service closed because of a limit.",
            "reason",
        )
        for reason in _CLOSED:
            self.closed_connections(reason)
        self.files_exhausted = counter(
            "ign_files_exhausted",
            "Seconds in which no file could be opened and new connections were closed.",
        )
        self._requests = counters("ign_requests", "Responses sent.", "endpoint", "status", "model")
        self._errors = counters("ign_http_errors", "Error responses sent, by error code.", "code")
        self._latency = histograms(
            "ign_request_seconds",
            "From request headers to the end of the response.",
            _LATENCY,
            "endpoint",
            "model",
        )
        self.in_flight = gauge("ign_requests_in_flight", "Requests in flight, without probes.")
        self._caller_requests = counters(
            "ign_caller_requests", "Responses sent to callers with an API key.", "caller", "status"
        )
        self._caller_row_steps = counters(
            "ign_caller_row_steps",
            "Steps applied to finished rows of callers with an API key.",
            "caller",
        )

        # Images and rows
        self.codec = histograms(
            "ign_codec_seconds", "One call that decodes or encodes images.", _COMPUTE, "operation"
        )
        self.codec_waiting = gauge(
            "ign_codec_waiting_jobs", "Jobs waiting for a thread of the codec pool."
        )
        self._distance = histograms(
            "ign_distance",
            "Mean |f(x) - x| of inputs, in the model's units.",
            _DISTANCE,
            "model",
            "endpoint",
        )
        self._drift = histograms(
            "ign_drift",
            "Mean |f(y) - y| of outputs, if requested, in the model's units.",
            _DRIFT,
            "model",
            "endpoint",
        )
        self._row_steps = histograms(
            "ign_row_steps", "Steps applied to a finished row.", _STEPS, "model"
        )

        # Models
        self.reference = gauge(
            "ign_distance_reference",
            "Percentiles of mean |f(x) - x| of held-out real images, from the model card.",
            "model",
            "percentile",
            combine=max,
        )
        info = ("model", "digest", "provider", "reproducible")
        self.model_info = gauge("ign_model_info", "1 for each loaded model.", *info, combine=max)
        self.instances = gauge("ign_model_instances", "Instances of a loaded model.", "model")
        self.failed_models = gauge(
            "ign_failed_models", "Versions in the model directory that failed to load.", combine=max
        )
        self._open_models = gauge(
            "ign_open_models", "Open models, with a limit (IGN_MODEL_MEMORY_MIB)."
        )
        self.opened_models = counter(
            "ign_opened_models", "Closed models that were opened for a request."
        )
        self._model_bytes = gauge("ign_model_memory_bytes", "Memory of open models, with a limit.")
        self._queue_rows = gauge("ign_queue_rows", "Rows waiting for a batch.", "model")

        # Their schedulers, recorded by `service.observability.statistics`
        self.queue_limit = gauge(
            "ign_queue_limit_rows", "Most rows that may wait for one model (IGN_QUEUE_ROWS)."
        )
        self.queue_seconds = histograms(
            "ign_queue_seconds",
            "From submission until the first row enters a batch.",
            _LATENCY,
            "model",
        )
        self.compute_seconds = histograms(
            "ign_compute_seconds",
            "From the first row entering a batch until the last row is done.",
            _LATENCY,
            "model",
        )
        self.batch_rows = histograms(
            "ign_batch_rows", "Rows in a batch, padding excluded.", _ROWS, "model"
        )
        self.batch_seconds = histograms("ign_batch_seconds", "One model call.", _COMPUTE, "model")
        self.padding_rows = counters(
            "ign_padding_rows", "Padding rows computed to fill a bucket.", "model"
        )
        self.batches = counters(
            "ign_batches", "Model calls, by why the batch was closed.", "model", "reason"
        )
        self.scheduled_requests = counters(
            "ign_scheduled_requests",
            "Requests that the scheduler finished, by outcome.",
            "model",
            "outcome",
        )
        self.rejected_requests = counters(
            "ign_rejected_requests", "Requests rejected at admission.", "model", "reason"
        )
        self.early_exits = counters(
            "ign_early_exits", "Rows that met their tolerance before their last step.", "model"
        )
        self.cancellations = counters(
            "ign_cancelled_rows",
            "Unfinished rows dropped because the client disconnected.",
            "model",
        )
        self.batch_size_reductions = counters(
            "ign_batch_size_reductions",
            "Times the device ran out of memory, by the new largest batch.",
            "model",
            "rows",
        )
        self.devices_lost = counters(
            "ign_devices_lost", "Devices that fail every call until a restart.", "model"
        )
        self.replacements = counters(
            "ign_worker_replacements", "Worker threads that died and were replaced.", "model"
        )

    @classmethod
    def of_supervisor(cls, shared: Path) -> "Metrics":
        """Those of the process that starts the others; whether the service is ready does not depend
        on it.
        """
        metrics = cls(SharedFiles(shared))
        metrics.ready.set(1)
        return metrics

    def _children(self, child_of: Callable[..., Any], labels: Sequence[str]) -> Callable[..., Any]:
        limits = [self._limits[label] for label in labels]

        @lru_cache(maxsize=1024)  # `child_of` costs more than `inc()`
        def child(*values: str | None) -> Any:
            both = zip(limits, values, strict=True)
            return child_of(*("none" if value is None else limit(value) for limit, value in both))

        return child

    def add_callers(self, names: Collection[str]) -> None:
        """Start the counters of these names of API keys at 0; `increase` misses the first event of
        a new series.
        """
        for name in names:
            self._caller_requests(name, "2xx")
            self._caller_row_steps(name)

    def requests(
        self, endpoint: str, status: int, ended: Sequence[tuple[float, RequestRecord]]
    ) -> None:
        """Count responses to one ``endpoint``, the template of a route, never the path of a
        request.

        ``ended`` has for each request the seconds from its headers to the last byte. All have
        one `model`. A recorded `trace` becomes an exemplar.
        """
        model = ended[0][1].model
        status_class = f"{status // 100}xx"
        self._requests(endpoint, status_class, model).inc(len(ended))
        latency = self._latency(endpoint, model)
        latency.observe([seconds for seconds, _ in ended])
        for seconds, request in ended:
            trace = request.trace
            if trace is not None and trace.flags & SAMPLED:
                latency.exemplify(seconds, {"trace_id": trace.trace_id})
            if request.api_key is not None:
                self._caller_requests(request.api_key, status_class).inc()
            if request.problem is not None:
                self._errors(request.problem).inc()

    def rows(
        self, model: str, endpoint: str, results: Sequence[Result], api_key: str | None = None
    ) -> None:
        """Count the finished rows of requests of one caller; uploads and noise have different
        distances.
        """
        steps = [count for result in results for count in result.steps.tolist()]
        if api_key is not None:
            self._caller_row_steps(api_key).inc(sum(steps))
        self._row_steps(model).observe(steps)
        distances = [value for result in results for value in result.distance.tolist()]
        self._distance(model, endpoint).observe(distances)
        drifts = [each.drift for each in results if each.drift is not None]
        if drifts:
            self._drift(model, endpoint).observe(np.concatenate(drifts).tolist())

    def open_models(self, count: int, size: int) -> None:
        """Set the number of open models and their bytes."""
        self._open_models.set(count)
        self._model_bytes.set(size)

    def set_queue_rows(self, waiting: Mapping[str, int]) -> None:
        """Set the rows waiting now, by `name/version`. A model that is not in ``waiting`` has
        none.
        """
        self._queued.update(waiting)
        for model in self._queued:
            self._queue_rows.labels(self.model_label(model)).set(waiting.get(model, 0))

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """As `render`, in a thread; the text may be a second old. All calls come from one event
        loop.
        """
        kind = _OPENMETRICS if _OPENMETRICS in accept else ""
        now = time.monotonic()
        began, rendering = self._latest.get(kind, (now, None))
        if rendering is None or (rendering.done() and now - began >= CACHE_S):
            rendering = asyncio.create_task(asyncio.to_thread(self.render, kind))
            self._latest[kind] = now, rendering
        # a client that disconnects must not stop it for the others
        return await asyncio.shield(rendering)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, and their content type: OpenMetrics, which has exemplars, if ``accept``
        names it.

        The metrics of several processes have no exemplars, and are never in OpenMetrics. Raises
        `NotReady` if this process cannot leave its own: a sum of old files would look like quiet.
        """
        is_open = _OPENMETRICS in accept and self.shared is None
        encode, content_type = choose_encoder(_OPENMETRICS if is_open else "")
        with self._rendering:
            if self.shared is None:
                return encode(self.registry), content_type
            # Its own from the file too: what a scrape of another process has shown must not
            # decrease.
            if not self.publish():
                raise NotReady("the metrics cannot be written; the log says why")
            return add_up(self.shared.read(), self._combine), content_type

    def publish(self) -> bool:
        """Leave the metrics of this process where scrapes of all processes find them, if there are
        others; whether that worked.
        """
        if self.shared is None:
            return True
        with self._publishing:
            try:
                own = generate_latest(self.registry).decode()
                self.shared.write(add_up([(self._earlier, False), (own, True)], self._combine))
            except OSError as exc:
                self._warn_once(
                    f"the metrics of this process cannot be written, so /metrics fails: {exc}"
                )
                return False
        return True
