"""Traces and log lines."""

import asyncio
import errno
import io
import logging
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from service.observability import logs
from service.observability.logs import (
    QueuedHandler,
    RequestRecord,
    TextFormatter,
    TraceContext,
    log_request,
    parse_traceparent,
)
from service.observability.tracing import Tracing, start_tracing
from service.scheduling.scheduler import Scheduler
from service.settings import trace_exporters
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    marked,
    params,
    play,
    release,
    until_queued,
    until_running,
)

PARENT = TraceContext("a" * 32, "b" * 16, 1)


def recording() -> tuple[Tracing, InMemorySpanExporter]:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter


def test_a_batch_is_linked_to_all_its_requests_and_a_caller_that_leaves_is_seen() -> None:
    tracing, exporter = recording()
    model = FakeModel(gate=threading.Event())

    async def main(scheduler: Scheduler) -> set[str]:
        running = scheduler.run(marked(1), params())  # of no recorded trace
        await until_running(model)
        traces = [tracing.start_request(time.monotonic(), None, []) for _ in range(3)]
        calls = [scheduler.run(marked(1, 2), replace(params(), observer=spans)) for spans in traces]
        await until_queued(scheduler, *calls)
        calls[2].cancel()
        await asyncio.gather(calls[2], return_exceptions=True)
        release(model)
        await asyncio.gather(running, *calls[:2])
        return {spans.position.span_id for spans in traces[:2]}

    ids = play(main, model, on_batch=partial(tracing.batch_ran, "toy/1"))
    spans = exporter.get_finished_spans()
    (batch,) = [span for span in spans if span.name == "batch"]
    assert {f"{link.context.span_id:016x}" for link in batch.links} == ids
    assert [span.name for span in spans].count("compute") == 2
    outcomes = [
        dict(span.attributes or {})["ign.outcome"] for span in spans if span.name == "queue"
    ]
    assert sorted(map(str, outcomes)) == ["cancelled", "ok", "ok"]


def test_the_parts_of_a_long_stream_are_bounded() -> None:
    tracing, exporter = recording()
    spans = tracing.start_request(time.monotonic(), None, [])
    for _ in range(1000):
        spans.add("encode", 0.001)
    assert 10 < len(exporter.get_finished_spans()) < 100


def test_the_tracestate_of_the_caller_is_kept() -> None:
    spans = recording()[0].start_request(time.monotonic(), PARENT, ["a=1", "b=2"])
    assert dict(spans.span.get_span_context().trace_state) == {"a": "1", "b": "2"}
    assert spans.position.trace_id == PARENT.trace_id
    spans = Tracing(TracerProvider(ALWAYS_OFF)).start_request(time.monotonic(), PARENT, [])
    assert (spans.recorded, spans.position.flags & 1) == (False, 0)  # the sampler decides


def test_an_exporter_that_is_not_installed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert start_tracing(["nonsense"]) is None
    assert "nonsense" in caplog.text


def test_a_collector_out_of_reach_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.observability.tracing._CLOSE_S", 0.01)
    provider = TracerProvider(shutdown_on_exit=False)
    forever = threading.Event()
    monkeypatch.setattr(provider, "shutdown", forever.wait)
    Tracing(provider).close()
    forever.set()


HTTP = ("otlp_proto_http",)
GRPC = ("otlp_proto_grpc",)


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, HTTP),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, ()),
        ({"OTEL_TRACES_EXPORTER": " otlp, console"}, (*HTTP, "console")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, ()),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            GRPC,
        ),
    ],
)
def test_the_standard_variables_switch_traces_on(
    environ: dict[str, str], exporters: tuple[str, ...]
) -> None:
    assert trace_exporters(environ) == exporters


def test_what_cannot_be_written_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    monkeypatch.setattr(logs, "_FLUSH_S", 0.01)
    reached = threading.Event()
    read = threading.Event()

    class Pipe(io.StringIO):
        """Blocks until it is read, and does not take every line."""

        def write(self, text: str) -> int:
            reached.set()
            read.wait()
            if text == "3\n":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    pipe = Pipe()
    handler = QueuedHandler(pipe)
    dropped = list[None]()
    handler.on_drop = lambda: dropped.append(None)
    handler.handle(logging.makeLogRecord({"msg": "0"}))
    # From now on one is with the target, and nothing leaves the queue.
    assert reached.wait(300)
    for i in range(1, 100):
        handler.handle(logging.makeLogRecord({"msg": str(i)}))
    assert len(dropped) == 100 - 11
    handler.flush()
    assert not pipe.getvalue()
    read.set()
    monkeypatch.setattr(logs, "_FLUSH_S", 60)
    handler.flush()
    handler.handle(logging.makeLogRecord({"msg": "last"}))
    handler.flush()
    assert pipe.getvalue().split() == [*"012456789", "10", "last"]
    assert len(dropped) == 100 - 10


@pytest.mark.parametrize(
    ("known", "end"),
    [
        ({}, ""),
        (
            {"model": "mnist/6", "rows": 2, "seconds": {"queue": 0.5, "compute": 48.0}, "steps": 9},
            " model=mnist/6 rows=2 queue_ms=500.0 compute_ms=48000.0",
        ),
        ({"problem": "queue_full", "model": "mnist/6"}, " code=queue_full model=mnist/6"),
    ],
)
def test_a_line_of_text_says_whether_a_request_waited_or_computed(
    caplog: pytest.LogCaptureFixture, known: dict[str, object], end: str
) -> None:
    request = RequestRecord()
    request.seconds = {}
    vars(request).update(known, request_id="mine", method="POST", endpoint="/project", status=499)
    caplog.set_level(logging.INFO, "service.access")
    log_request(request, 48.5681)
    (record,) = caplog.records
    assert (
        TextFormatter()
        .format(record)
        .endswith(f" INFO mine POST /project 499 48568.1 ms{end} caller=")
    )


TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f" {GIVEN}\t", 1),
        (f"00-{TRACE}-{SPAN}-03", 3),  # the random flag of level 2
        (f"cc-{TRACE}-{SPAN}-01-what-else", 1),  # a later version
    ],
)
def test_a_valid_position_is_taken(value: str, flags: int) -> None:
    assert parse_traceparent([value]) == TraceContext(TRACE, SPAN, flags)
