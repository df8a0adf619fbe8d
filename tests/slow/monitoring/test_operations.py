"""docs/operations.md tells of what there is: metrics, settings and panels that exist."""

import re

import pytest

from service.observability.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.slow.monitoring.files import DASHBOARD, OPERATIONS, alerts, panels, rules
from tests.slow.monitoring.test_rules import base_metrics, exposed

TEXT = OPERATIONS.read_text(encoding="utf-8")
METRICS = TEXT.partition("\n## Metrics\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `(\w+)` \| (.+) \|$", METRICS, flags=re.MULTILINE)


def test_metrics_that_it_names_exist() -> None:
    families = Metrics().registry.collect()
    there = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert len(ROWS) > 15
    assert {name for name, _ in ROWS} <= there


def test_every_metric_has_a_description() -> None:
    assert all(metric.documentation for metric in Metrics().registry.collect())


def test_settings_that_it_names_exist() -> None:
    named = set(re.findall(rf"`({PREFIX}[A-Z_]+)", TEXT))
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert len(named) > 10
    assert named <= known


def test_panels_that_it_names_exist() -> None:
    titles = {panel["title"] for panel in panels()} | {"Overview"}
    prometheus = {"Service discovery", "Configuration", "Targets"}
    runbooks = TEXT.partition("\n## Runbooks\n")[2]
    named = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", runbooks)}
    assert len(named) > 10
    assert named <= titles | prometheus


RUNBOOKS = dict(re.findall(r"^### (\w+)\n\n```(?:sh|text)\n(.+)\n```\n", TEXT, flags=re.MULTILINE))


def test_every_runbook_begins_with_a_command() -> None:
    assert list(RUNBOOKS) == list(alerts())
    programs = {"curl", "dmesg", "docker", "nvidia-smi", "promtool"}
    assert {command.split()[0] for command in RUNBOOKS.values()} == programs
    queries = [query for command in RUNBOOKS.values() for query in re.findall("^promtool query .+ '(.+)'$", command)]
    assert queries
    assert {name for query in queries for name in base_metrics(query)} <= exposed()  # tests/docs runs the others


def test_codes_that_it_names_are_those_of_the_contract() -> None:
    contract = (OPERATIONS.parent / "http-api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`:", TEXT))
    assert len(named) > 5
    assert all(f"`{code}`" in contract for code in named)


@pytest.mark.parametrize(
    ("objective", "share", "record"),
    [("99.9 % of answers are no 5xx", "0.001", "job:ign_errors:"), ("at most 1 s", "0.01", "job:ign_slow:")],
)
def test_objectives_are_those_of_the_rules(objective: str, share: str, record: str) -> None:
    assert objective in TEXT
    burning = [rule["expr"] for rule in alerts().values() if record in rule["expr"]]
    assert len(burning) == 2
    limits = {limit for expr in burning for limit in re.findall(rf"{record}\w+ > (?:[\d.]+ \* )?([\d.]+)", expr)}
    assert limits == {share}
    assert f"{record}ratio3d / {share})" in DASHBOARD.read_text(encoding="utf-8")
    assert sum(rule.get("record", "").startswith(f"{record}ratio") for rule in rules()) == 5
