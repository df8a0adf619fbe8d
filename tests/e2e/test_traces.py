"""Traces of a service as its operators start it, as a collector gets them over OTLP."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tests.helpers.live import live_service
from tests.helpers.onnx_models import write_model

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-0{flag}" for flag in "10")


@contextmanager
def collector() -> Iterator[tuple[list[ResourceSpans], str]]:
    """What has been exported to this URL."""
    exported: list[ResourceSpans] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            exported.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield exported, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    return {
        one.key: one.value.string_value
        if one.value.HasField("string_value")
        else one.value.int_value
        for one in span.attributes
    }


def test_each_request_is_a_trace_of_its_parts(tmp_path: Path) -> None:
    write_model(tmp_path)
    with collector() as (exported, url):
        variables = {
            "IGN_MODEL_DIR": str(tmp_path),
            "IGN_DEFAULT_MODEL": "toy",
            "IGN_DEVICE": "cpu",
            "NO_PROXY": "*",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # only the end of the process exports
            "OTEL_SERVICE_NAME": "mine",
        }
        headers = {"traceparent": SAMPLED, "X-Request-ID": "r"}
        late = {"X-Request-Timeout": "0.05"}
        with (
            live_service(**variables) as service,
            httpx.Client(base_url=service, timeout=300) as client,
        ):
            answered = client.post("/generate", json={"n": 2, "steps": 1}, headers=headers)
            refused = client.post("/generate", json={"n": 0})
            unsampled = client.post("/generate", json={}, headers={"traceparent": UNSAMPLED})
            assert unsampled.headers["traceparent"].startswith(f"00-{TRACE}-")
            assert client.get("/readyz").status_code == 200
            client.post("/generate", json={"steps": 300_000}, headers=late)
    for one in exported:
        assert "mine" in [each.value.string_value for each in one.resource.attributes]
    spans = [span for one in exported for scope in one.scope_spans for span in scope.spans]
    requests = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert {span.name for span in requests} == {"POST /generate"}  # no probe
    # none without the flag
    statuses = {attributes(span)["http.response.status_code"]: span for span in requests}
    assert sorted(statuses) == [200, 422, 504]
    assert len(requests) == 3

    root = statuses[200]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert answered.headers["traceparent"] == f"00-{TRACE}-{root.span_id.hex()}-01"
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
    parts = {span.name: span for span in spans if span.parent_span_id == root.span_id}
    assert sorted(parts) == ["batch", "compute", "decode", "encode", "queue"]
    for span in (root, *parts.values()):
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert parts["queue"].end_time_unix_nano <= parts["compute"].end_time_unix_nano
    assert [link.span_id for link in parts["batch"].links] == [root.span_id]
    rows = {"ign.model": "toy/1", "ign.batch.rows": 2, "ign.batch.steps": 1}
    assert attributes(parts["batch"]) == rows

    root = statuses[422]
    assert not root.parent_span_id
    started = f"00-{root.trace_id.hex()}-{root.span_id.hex()}-0"
    assert refused.headers["traceparent"].startswith(started)
    assert attributes(root)["error.type"] == "invalid_value"
    assert root.status.code == Status.STATUS_CODE_UNSET  # the caller's mistake

    root = statuses[504]
    assert root.status.code == Status.STATUS_CODE_ERROR
    outcomes = {
        attributes(span).get("ign.outcome") for span in spans if span.parent_span_id == root.span_id
    }
    # Without parts, the deadline passed before the rows were submitted.
    assert outcomes <= {None, "deadline_exceeded"}
