"""Every query of the dashboards and of the rules, put to a real Prometheus that watches a real
service at work.
"""

import math
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.live import live_service
from tests.slow.monitoring.files import (
    Query,
    needs_prometheus,
    panel_queries,
    rule_queries,
    rules,
    selectors,
)
from tests.slow.monitoring.prometheus import Prometheus, running

pytestmark = [needs_prometheus, pytest.mark.slow]

EMPTY = {
    "DCGM_": "no GPU is watched here",
    "ALERTS": "no alert has fired for as long as it must before it is said",
    "ign_caller_": "no keys are configured",
    'code="too_many_connections"': "it takes several callers; one alone gets `over_share`",
    "ign_batch_size_reductions_total": "the device has to run out of memory first",
}
"""Series that are not to be had from a service that is well, and why."""

OPERATOR = {
    "job": "b",
    "namespace": "n",
    "service": "ign",
    "pod": "ign-0",
    "container": "ign",
    "endpoint": "http",
}
"""What prometheus-operator adds to a target of a ServiceMonitor."""


SETTINGS = {
    "IGN_QUEUE_ROWS": "64",
    "IGN_MAX_INFLIGHT_REQUESTS": "8",
    "IGN_STREAM_TIMEOUT_S": "604800",
}
ENDLESS = {"model": "fashion_mnist", "steps": 300_000}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def traffic(url: str) -> None:
    """Send one round of requests of every kind, so that no metric stays empty."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client, ExitStack() as streams:

        def post(status: int, path: str, json: Any = None, **content: Any) -> httpx.Response:
            response = client.post(path, json=json, **content)
            assert response.status_code == status, f"{path}: {response.status_code} {response.text}"
            return response

        def stream(rows: int) -> int:
            headers = {"Accept": "text/event-stream"}
            request = client.build_request(
                "POST", "/generate", json={"n": rows, **ENDLESS}, headers=headers
            )
            response = client.send(request, stream=True)
            streams.callback(response.close)
            return response.status_code

        post(
            200,
            "/generate",
            {"n": 4, "score": True},
            headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
        )
        image = post(200, "/generate", {"seed": 7}, headers={"Accept": "image/png"})
        for path in ("/project?steps=20&tolerance=1.5&score=true", "/score"):
            post(200, path, content=image.content, headers={"Content-Type": "image/png"})
        post(200, "/latent-interpolate", {"points": [{"seed": 1}, {"seed": 2}]})
        post(200, "/latent-arithmetic", {"terms": [{"seed": 1}, {"seed": 2, "weight": -1}]})
        tensor = {"name": "x", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
        post(200, "/v2/models/mnist/infer", {"inputs": [tensor]})
        assert client.get("/readyz").status_code == 200
        post(422, "/generate", {"n": 0})
        post(404, "/nothing")
        post(504, "/generate", ENDLESS, headers={"X-Request-Timeout": "0.5"})
        # More than two batches of 64 rows and the queue hold, and not so many that it is full.
        assert 429 in [stream(40) for _ in range(5)]
        assert 429 in [stream(1) for _ in range(8)]  # more requests than may be in flight


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with live_service(**SETTINGS) as url:
        yield url


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen one round of traffic, and then another: a rate is what came between two looks."""
    with running(
        tmp_path_factory.mktemp("prometheus"), str(httpx.URL(service).netloc, "ascii")
    ) as found:
        for count in (1, 2):
            traffic(service)
            # The error is the last that a rule counts: a look before it would miss the first one.
            seen = found.until(
                f'sum(ign_requests_total{{status="5xx",endpoint="/generate"}}) == {count}', answers
            )
            assert seen == [count], found.ask("targets")
        yield found


def why_empty(expr: str) -> str | None:
    return next((reason for part, reason in EMPTY.items() if part in expr), None)


def answers(values: list[float]) -> bool:
    return any(math.isfinite(value) for value in values)


@pytest.mark.parametrize("query", list(panel_queries()), ids=str)
def test_every_query_of_the_dashboards_has_an_answer(prometheus: Prometheus, query: Query) -> None:
    if why_empty(query.expr) and "vector(" not in query.expr:
        assert not answers(prometheus.query(query.expr)), "it is not empty: take it from the list"
    else:
        assert answers(prometheus.until(query.expr, answers)), query.expr


@pytest.mark.parametrize("query", list(rule_queries()), ids=str)
def test_every_rule_looks_at_what_is_there(prometheus: Prometheus, query: Query) -> None:
    prometheus.query(query.expr)
    assert selectors(query.expr), "it looks at nothing"
    for selector in selectors(query.expr):
        if why_empty(selector):
            assert not prometheus.query(selector), "it is not empty: take it from the list"
        else:
            assert answers(prometheus.until(selector, answers)), selector


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    names = {rule.get("alert") or rule["record"] for rule in rules()}
    prometheus.until("count(job:ign_slow:ratio3d)", answers)
    found = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in prometheus.rules()}
    assert found == dict.fromkeys(names, ("ok", None))


def test_traces_are_exemplars(prometheus: Prometheus) -> None:
    found = prometheus.exemplars('ign_request_seconds_bucket{endpoint="/generate"}')
    assert {"trace_id": TRACE} in found


def test_metrics_are_as_prometheus_wants_them(service: str) -> None:
    text = httpx.get(f"{service}/metrics", trust_env=False).content
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=1800, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_labels_of_the_operator_move_none_of_ours(
    service: str, prometheus: Prometheus, tmp_path: Path
) -> None:
    """What prometheus-operator says of a target wins, and the service's label of that name becomes
    `exported_…`.
    """
    from tests.slow.kubernetes.test_chart import one  # skips where Helm is not installed

    assert set(prometheus.ask("labels")) > {"endpoint", "model"}
    (endpoint,) = one("autoscaled", "ServiceMonitor")["spec"]["endpoints"]
    relabel = [
        {re.sub("(?=[A-Z])", "_", name).lower(): step[name] for name in step}
        for step in endpoint["relabelings"]
    ]
    with running(tmp_path, str(httpx.URL(service).netloc, "ascii"), OPERATOR, relabel) as found:
        assert answers(
            found.until(
                'count(ign_requests_total{endpoint="/score", pod="ign-0", job="ign"})', answers
            )
        )
        assert not [name for name in found.ask("labels") if name.startswith("exported_")]
