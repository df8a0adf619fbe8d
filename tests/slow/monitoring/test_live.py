"""Every query of the dashboard and of the rules, put to a real Prometheus that watches a real service at work."""

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.helpers.live import ROOT, live_service
from tests.slow.monitoring.files import Query, alerts, needs_prometheus, panel_queries, rule_queries, rules, selectors
from tests.slow.monitoring.prometheus import Prometheus, running
from tests.slow.monitoring.traffic import SETTINGS, TRACE, traffic

pytestmark = [needs_prometheus, pytest.mark.slow]

EMPTY = {
    "DCGM_": "no GPU is watched here",
    "ALERTS": "no alert has fired for as long as it must before it is said",
    "ign_caller_": "no keys are configured",
    "ign_batch_size_reductions_total": "the device has to run out of memory first",
}
"""Series that are not to be had from a service that is well, and why."""

OPERATOR = {"namespace": "ign", "service": "ign", "pod": "ign-0", "container": "ign", "endpoint": "http"}
"""What prometheus-operator adds to a target of a ServiceMonitor."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with live_service(**SETTINGS) as url:
        yield url


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen one round of traffic, and then another: a rate is what came between two looks."""
    with running(tmp_path_factory.mktemp("prometheus"), str(httpx.URL(service).netloc, "ascii")) as found:
        for count in (1, 2):
            traffic(service)
            seen = found.until(f'sum(ign_requests_total{{endpoint="/score"}}) == {count}', answers)
            assert seen == [count], found.targets()
        yield found


def why_empty(expr: str) -> str | None:
    return next((reason for part, reason in EMPTY.items() if part in expr), None)


def answers(values: list[float]) -> bool:
    return any(math.isfinite(value) for value in values)


@pytest.mark.parametrize("query", list(panel_queries()), ids=str)
def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus, query: Query) -> None:
    if why_empty(query.expr) and " or vector(" not in query.expr:
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


def test_what_goes_wrong_is_seen(prometheus: Prometheus) -> None:
    """One of the alerts at work in earnest: among so few requests those that failed are many."""
    errors = prometheus.until("job:ign_errors:ratio1h", lambda found: found != [] and found[0] > 0.0144)
    assert errors[0] > 0.0144
    pending = prometheus.until(
        'count(ALERTS{alertname="IgnErrorBudgetBurnsFast", alertstate="pending"})', lambda found: found == [1]
    )
    assert pending == [1]
    assert alerts()["IgnErrorBudgetBurnsFast"]["for"] == "2m"


def test_traces_are_exemplars(prometheus: Prometheus) -> None:
    found = prometheus.exemplars('ign_request_seconds_bucket{endpoint="/generate"}')
    assert {"trace_id": TRACE} in found


def test_metrics_are_as_prometheus_wants_them(service: str) -> None:
    text = httpx.get(f"{service}/metrics", trust_env=False).content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_labels_of_the_operator_move_none_of_ours(service: str, prometheus: Prometheus, tmp_path: Path) -> None:
    """What prometheus-operator says of a target wins, and the service's label of that name becomes `exported_…`."""
    assert prometheus.labels() > {"endpoint", "model"}
    monitor = ROOT / "deploy" / "k8s" / "components" / "monitoring" / "servicemonitor.yaml"
    (endpoint,) = yaml.safe_load(monitor.read_text(encoding="utf-8"))["spec"]["endpoints"]
    with running(tmp_path, str(httpx.URL(service).netloc, "ascii"), OPERATOR, endpoint["relabelings"]) as found:
        assert answers(found.until('count(ign_requests_total{endpoint="/score", pod="ign-0"})', answers))
        assert not [name for name in found.labels() if name.startswith("exported_")]
