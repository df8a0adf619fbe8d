"""What is said of a request: in its log line, in the metrics, and of the trace that it belongs
to.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from tests.contract.harness import Service, bearer

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def lines(service: Service) -> Iterator[list[dict[str, Any]]]:
    with service.access_log() as found:
        yield found


def test_a_line_says_who_asked_what_of_which_model(guarded: Service) -> None:
    content = json.dumps({"n": 3, "steps": 2}).encode()
    headers = {
        "Content-Type": "application/json",
        "X-Request-ID": "mine",
        "traceparent": TRACEPARENT,
    } | bearer("alice")
    with guarded.access_log() as lines:
        response = guarded.post("/generate", content=content, headers=headers)
        assert response.status_code == 200
        guarded.until(lambda: bool(lines))
    (line,) = lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert re.fullmatch(r"mine POST /generate 200 \d+\.\d ms", line.pop("message"))
    for name in ("logger", "pid", "ms", "queue_ms", "compute_ms"):
        assert line.pop(name) not in (None, "")
    assert line == {
        "level": "INFO",
        "version": __version__,
        "request_id": "mine",
        "method": "POST",
        "route": "/generate",
        "status": 200,
        "caller": "alice",
        "peer": "127.0.0.1",
        "model": "grey/10",
        "rows": 3,
        "steps": 2,
        "request_bytes": len(content),
        "response_bytes": len(response.content),
        "trace_id": TRACE,
        "span_id": SPAN,
    }


def test_probes_and_scrapes_are_not_logged_unless_they_fail(
    service: Service, lines: list[dict[str, Any]]
) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
        assert service.get(path).status_code == 200
    assert service.post("/healthz").status_code == 405
    assert service.get("/models").status_code == 200
    assert service.post("/v2/repository/models/colour/load").status_code == 200
    service.until(lambda: len(lines) >= 3)
    assert [(line["route"], line["status"], line.get("model")) for line in lines] == [
        ("/healthz", 405, None),
        ("/models", 200, None),
        ("/v2/repository/models/{name}/load", 200, "colour"),
    ]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/generate"), ("GET", "/nope"), ("GET", "/healthz")]
)
def test_a_trace_is_passed_on(service: Service, method: str, path: str) -> None:
    response = service.client.request(method, path, headers={"traceparent": TRACEPARENT})
    assert response.headers["traceparent"] == TRACEPARENT


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            "nonsense",
            TRACEPARENT.upper(),
            f"{TRACEPARENT}, {TRACEPARENT}",
            f"00-{TRACE}-{SPAN}",
        ),
        *(
            f"00-{'0' * 32}-{SPAN}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"ff-{TRACE}-{SPAN}-01",
            f"{TRACEPARENT}-x",
        ),
    ],
)
def test_what_is_no_position_in_a_trace_is_ignored(service: Service, given: str) -> None:
    for headers in ([("traceparent", given)], [("traceparent", TRACEPARENT)] * 2):
        response = service.post("/generate", headers=headers)
        assert response.status_code == 200
        assert "traceparent" not in response.headers


def test_openmetrics_are_for_those_who_ask(service: Service) -> None:
    service.post("/generate", {}, headers={"traceparent": TRACEPARENT})
    asked = service.get(
        "/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"},
    )
    assert asked.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert asked.text.endswith("# EOF\n")
    assert f'# {{trace_id="{TRACE}"}}' in asked.text
    plain = service.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(plain.text)}
    assert names >= {
        "ign_requests",
        "ign_request_seconds",
        "ign_queue_rows",
        "ign_batch_rows",
        "ign_model_info",
    }
    assert TRACE not in plain.text
