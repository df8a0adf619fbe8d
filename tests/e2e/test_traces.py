"""Traces of a service as its operators start it, as a collector gets them over OTLP."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tests.helpers.live import live_service
from tests.helpers.onnx_models import write_model

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-0{flag}" for flag in "10")


class Collector:
    """What has been exported."""

    def __init__(self) -> None:
        self.resources: list[ResourceSpans] = []

    def take(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        self.resources.extend(request.resource_spans)

    def spans(self) -> list[Span]:
        return [
            span
            for one in list(self.resources)
            for scope in one.scope_spans
            for span in scope.spans
        ]


@contextmanager
def over_http() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert (self.path, self.headers["Content-Type"]) == (
                "/v1/traces",
                "application/x-protobuf",
            )
            collector.take(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def attributes(span: Span) -> dict[str, str | int]:
    return {
        one.key: one.value.string_value
        if one.value.HasField("string_value")
        else one.value.int_value
        for one in span.attributes
    }


def test_each_request_is_a_trace_of_its_parts(tmp_path: Path) -> None:
    write_model(tmp_path)
    with over_http() as (collector, url):
        variables = {
            "IGN_MODEL_DIR": str(tmp_path),
            "IGN_DEFAULT_MODEL": "toy",
            "IGN_DEVICE": "cpu",
            "NO_PROXY": "*",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # only the end of the process exports
            "OTEL_SERVICE_NAME": "mine",
        }
        before = time.time_ns()
        with (
            live_service(**variables) as service,
            httpx.Client(base_url=service, timeout=300) as client,
        ):
            response = client.post(
                "/generate",
                json={"n": 2, "steps": 1},
                headers={"traceparent": SAMPLED, "X-Request-ID": "r"},
            )
            assert response.status_code == 200
            assert response.headers["traceparent"].startswith(f"00-{TRACE}-")
            begun = client.post("/generate", json={"n": 0})
            assert begun.status_code == 422
            unsampled = client.post("/generate", json={}, headers={"traceparent": UNSAMPLED})
            assert unsampled.headers["traceparent"].startswith(f"00-{TRACE}-")
            client.get("/readyz")
            late = client.post(
                "/generate", json={"steps": 300_000}, headers={"X-Request-Timeout": "0.05"}
            )
            assert late.status_code == 504
        after = time.time_ns()
    (resource,) = {
        one.resource.SerializeToString(): one.resource for one in collector.resources
    }.values()
    assert {one.key: one.value.string_value for one in resource.attributes}[
        "service.name"
    ] == "mine"

    (root,) = [span for span in collector.spans() if span.parent_span_id.hex() == PARENT]
    assert root.name == "POST /generate"
    assert root.trace_id.hex() == TRACE
    assert response.headers["traceparent"] == f"00-{TRACE}-{root.span_id.hex()}-01"
    assert root.kind == Span.SPAN_KIND_SERVER
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "ign.request_id": "r",
        "ign.model": "toy/1",
        "ign.rows": 2,
        "ign.steps": 1,
    }
    of_trace = [
        span for span in collector.spans() if span.trace_id == root.trace_id and span is not root
    ]
    assert sorted(span.name for span in of_trace) == [
        "batch",
        "compute",
        "decode",
        "encode",
        "queue",
    ]
    children = {span.name: span for span in of_trace}
    assert all(span.parent_span_id == root.span_id for span in children.values())
    for span in (root, *children.values()):
        assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= after
    assert children["queue"].end_time_unix_nano <= children["compute"].end_time_unix_nano
    assert [link.span_id for link in children["batch"].links] == [root.span_id]
    assert attributes(children["batch"]) == {
        "ign.model": "toy/1",
        "ign.batch.rows": 2,
        "ign.batch.steps": 1,
    }

    (refused,) = [
        span
        for span in collector.spans()
        if attributes(span).get("http.response.status_code") == 422
    ]
    assert begun.headers["traceparent"].startswith(
        f"00-{refused.trace_id.hex()}-{refused.span_id.hex()}-0"
    )
    assert not refused.parent_span_id
    assert attributes(refused)["error.type"] == "invalid_value"
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the caller's mistake
    assert not [span for span in collector.spans() if "readyz" in span.name]
    (failed,) = [span for span in collector.spans() if span.status.code == Status.STATUS_CODE_ERROR]
    assert attributes(failed)["http.response.status_code"] == 504
    parts = {
        span.name: attributes(span)
        for span in collector.spans()
        if span.parent_span_id == failed.span_id
    }
    # Without parts, the deadline passed before the rows were submitted.
    assert {part["ign.outcome"] for part in parts.values() if "ign.outcome" in part} <= {
        "deadline_exceeded"
    }
    # none without the flag
    assert len([span for span in collector.spans() if span.name == "POST /generate"]) == 3
