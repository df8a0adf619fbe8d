"""Rules and configuration: as promtool reads them, and what it cannot see."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.observability.metrics import Metrics
from tests.slow.monitoring.files import (
    CONFIG,
    OPERATIONS,
    RULES,
    TESTS,
    alerts,
    names,
    needs_prometheus,
    rule_queries,
    rules,
)

FILES = pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
ALERTS = pytest.mark.parametrize("name", list(alerts()))


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_prometheus_accepts_the_configuration() -> None:
    promtool("check", "config", "--lint-fatal", CONFIG)
    promtool("check", "rules", "--lint-fatal", *RULES)


@needs_prometheus
@FILES
def test_alerts_fire_when_they_should_and_not_otherwise(file: Path) -> None:
    promtool("test", "rules", file)


@needs_prometheus
def test_runbooks_are_found_where_the_documents_are_published() -> None:
    promtool("test", "rules", Path(__file__).with_name("runbooks.yml"))


def situations() -> list[tuple[set[str], list[str]]]:
    """Of every look at every situation: the metrics that were given, and what fires, as promtool writes it."""
    found = []
    for file in TESTS:
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            given = {series["series"].partition("{")[0] for series in test["input_series"]}
            found += [
                (given, [sample["labels"] for sample in look["exp_samples"]])
                for look in test["promql_expr_test"]
                if look["expr"] == 'ALERTS{alertstate="firing"}'
            ]
    return found


def firing(name: str) -> list[dict[str, str]]:
    """The labels with which an alert fires in the tests."""
    said = [dict(re.findall(r'(\w+)="([^"]*)"', sample)) for _, samples in situations() for sample in samples]
    return [labels for labels in said if labels["alertname"] == name]


@ALERTS
def test_every_alert_has_a_firing_and_a_silent_test(name: str) -> None:
    assert firing(name)
    looked_at = base_metrics(alerts()[name]["expr"])
    assert any(given & looked_at and f'alertname="{name}"' not in str(samples) for given, samples in situations())


@ALERTS
def test_annotations_use_only_labels_that_exist(name: str) -> None:
    texts = alerts()[name]["annotations"]
    assert set(texts) == {"summary", "description", "runbook_url"}
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(texts.values())))
    assert all(used <= set(labels) for labels in firing(name))


@ALERTS
def test_every_alert_has_its_runbook(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    page = '{{ or $externalLabels.ign_docs "docs" }}/operations.md'
    assert rule["annotations"]["runbook_url"] == f"{page}#{name.lower()}"
    section = OPERATIONS.read_text(encoding="utf-8").partition(f"\n### {name}\n")[2].partition("\n#")[0]
    assert len(section.split()) >= 30, "its section says too little"


def test_every_runbook_has_its_alert() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("\n## Runbooks\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", text, flags=re.MULTILINE) == list(alerts())


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def base_metrics(expr: str) -> set[str]:
    """The metrics of the service that an expression comes down to, through recorded ones."""
    found = names(expr)
    while through := found & set(recorded()):
        found = (found - through) | {name for record in through for name in names(recorded()[record])}
    return found


def exposed() -> set[str]:
    """Every name that the service can send."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    families = Metrics().registry.collect()
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}


def test_rules_use_existing_metrics() -> None:
    looked_at = {name for query in rule_queries() for name in base_metrics(query.expr)}
    assert len(looked_at) > 10
    assert {name for name in looked_at if name.startswith("ign_")} <= exposed()
    assert {name for name in looked_at if not name.startswith("ign_")} == {
        "up",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_FB_FREE",
    }


def test_the_buckets_of_the_objectives_exist() -> None:
    metrics = Metrics()
    metrics.requests("/generate", 200, [(0.1, {})])
    sent = metrics.render()[0].decode()
    asked: set[Any] = {bucket for query in rule_queries() for bucket in re.findall(r'\ble="([^"]+)"', query.expr)}
    assert asked
    assert all(
        f'ign_request_seconds_bucket{{endpoint="/generate",le="{bucket}",model="none"}}' in sent for bucket in asked
    )
