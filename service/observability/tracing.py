"""Traces of requests and batches, by the OpenTelemetry SDK and its own exporters (extra `otel`).

    POST /project  (server) ├─ decode ─┤├─ queue ─┤├─ compute ─┤├─ encode ─┤ batch
    ├───────────┤   linked to all recorded requests in it

Spans are made after the fact, from times (`time.monotonic()`) that the service measures anyway.
Nothing here runs, and this module is not imported, unless the standard variables `OTEL_…` ask for
traces: see `service.settings`.
"""

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import StatusCode

from service import __version__
from service.domain.tasks import RequestObserver
from service.observability.logs import RequestRecord, TraceContext

_LOG = logging.getLogger("service")
# spans of decoding and encoding of one request; a stream encodes every recorded step
_MAX_PARTS: Final = 64
_CLOSE_S: Final = 2.0
_ATTRIBUTES: Final = {
    "request_id": "ign.request_id",
    "api_key": "ign.caller",
    "model": "ign.model",
    "rows": "ign.rows",
    "steps": "ign.steps",
    "peer": "client.address",
    "problem": "error.type",
}


def start_tracing(exporters: Sequence[str]) -> "Tracing | None":
    """Export traces to these entry points of `opentelemetry_traces_exporter`, as the variables
    `OTEL_…` say.

    Returns None, after a warning in the log, if an exporter is not installed.
    """
    installed = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    missing = [name for name in exporters if name not in installed]
    if missing:
        _LOG.warning(
            "no traces: the OpenTelemetry exporter %s is not installed", ", ".join(missing)
        )
        return None
    own = {
        "service.name": "ign-service",
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
    }
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(installed[name].load()()))
    return Tracing(provider)


class Tracing:
    """Makes the spans of one process. Thread-safe."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("ign-service", __version__)

    def start_request(
        self, arrived: float, parent: TraceContext | None, tracestate: Sequence[str]
    ) -> "RequestSpans":
        """Begin the span of a request whose headers were complete when it ``arrived``; samplers
        read ``tracestate``.
        """
        context = None
        if parent is not None:
            headers = {"traceparent": parent.traceparent, "tracestate": ",".join(tracestate)}
            context = TraceContextTextMapPropagator().extract(headers)
        span = self._tracer.start_span(
            "request", context, SpanKind.SERVER, start_time=_epoch_ns(arrived)
        )
        return RequestSpans(self._tracer, span)

    def batch_ran(
        self,
        model: str,
        observers: Sequence[RequestObserver | None],
        began: float,
        ended: float,
        steps: int,
    ) -> None:
        """Record a batch of rows with these ``observers``, if one is the `RequestSpans` of a
        recorded trace.
        """
        linked = [one for one in dict.fromkeys(observers) if isinstance(one, RequestSpans)]
        if linked:
            self._tracer.start_span(
                "batch",
                linked[0].context,
                attributes={
                    "ign.model": model,
                    "ign.batch.rows": len(observers),
                    "ign.batch.steps": steps,
                },
                links=[Link(spans.span.get_span_context()) for spans in linked],
                start_time=_epoch_ns(began),
            ).end(_epoch_ns(ended))

    def close(self) -> None:
        """Export what waits, for at most 2 s: a collector out of reach must not hold up the end of
        the process.
        """
        closing = threading.Thread(target=self._provider.shutdown, name="ign-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class RequestSpans:
    """The spans of one request. `scheduled` may be called from any thread."""

    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self.span = span
        self.context = set_span_in_context(span)
        self.recorded: bool = span.is_recording()
        self._parts = 0

    @property
    def position(self) -> TraceContext:
        """The request's own position in its trace."""
        own = self.span.get_span_context()
        return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", int(own.trace_flags))

    def add(self, name: str, seconds: float) -> None:
        """Record a part that has ended now, `decode` or `encode`; after the first 64 parts
        nothing.
        """
        if self._parts < _MAX_PARTS:
            self._parts += 1
            now = time.monotonic()
            self._child(name, now - seconds, now)

    def scheduled(
        self, submitted: float, started: float | None, ended: float, outcome: str
    ) -> None:
        """Record how long the rows waited and ran, see `RequestObserver`."""
        self._child(
            "queue", submitted, ended if started is None else started, {"ign.outcome": outcome}
        )
        if started is not None:
            self._child("compute", started, ended, {"ign.outcome": outcome})

    def end(self, request: RequestRecord) -> None:
        """End the span of the request."""
        method = request.method
        route = request.endpoint
        status = request.status
        self.span.update_name(f"{method} {route}")
        http = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        known = {
            name: value
            for key, name in _ATTRIBUTES.items()
            if (value := getattr(request, key)) is not None
        }
        self.span.set_attributes(http | known)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()

    def _child(
        self, name: str, began: float, ended: float, attributes: dict[str, str] | None = None
    ) -> None:
        span = self._tracer.start_span(
            name, self.context, attributes=attributes, start_time=_epoch_ns(began)
        )
        span.end(_epoch_ns(ended))


def _epoch_ns(monotonic_s: float) -> int:
    """A time of `time.monotonic()` as nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)
