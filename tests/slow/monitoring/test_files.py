"""Rules, dashboards and docs/operations.md, as promtool reads them, and held against each other and
the service.
"""

import re
from pathlib import Path

import pytest
import yaml

from service.observability.metrics import Metrics
from service.settings import PREFIX, Settings, variable_of
from tests.helpers.live import run
from tests.slow.monitoring.files import (
    CONFIG,
    OPERATIONS,
    RULES,
    TESTS,
    alerts,
    dashboards,
    names,
    needs_prometheus,
    panel_queries,
    panels,
    rules,
)

TEXT = OPERATIONS.read_text(encoding="utf-8")
METRICS = TEXT.partition("\n## Metrics\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `(\w+)` \| (.+) \|$", METRICS, flags=re.MULTILINE)
FILES = pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
ALERTS = pytest.mark.parametrize("name", list(alerts()))


def promtool(*arguments: str | Path) -> None:
    done = run("promtool", *arguments)
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
    """Of every look at every situation: the metrics that were given, and what fires, as promtool
    writes it.
    """
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
    said = [
        dict(re.findall(r'(\w+)="([^"]*)"', sample))
        for _, samples in situations()
        for sample in samples
    ]
    return [labels for labels in said if labels["alertname"] == name]


@ALERTS
def test_every_alert_has_a_firing_and_a_silent_test(name: str) -> None:
    assert firing(name)
    looked_at = base_metrics(alerts()[name]["expr"])
    assert any(
        given & looked_at and f'alertname="{name}"' not in str(samples)
        for given, samples in situations()
    )


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
    section = TEXT.partition(f"\n### {name}\n")[2].partition("\n#")[0]
    assert "**Do" in section, "its section does not say what to do"


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def base_metrics(expr: str) -> set[str]:
    """The metrics of the service that an expression comes down to, through recorded ones."""
    found = names(expr)
    while through := found & set(recorded()):
        found = (found - through) | {
            name for record in through for name in names(recorded()[record])
        }
    return found


def exposed() -> set[str]:
    """Every name that the service can send."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    families = Metrics().registry.collect()
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}


# The dashboards; `test_live` asks their questions


def test_the_first_dashboard_fits_on_a_screen_and_each_panel_is_in_one() -> None:
    assert len(panels(dashboards()["ign"])) == 12
    assert len(set(TITLES)) == len(TITLES)


def test_every_metric_of_the_service_is_shown() -> None:
    shown = {
        name
        for query in panel_queries()
        for name in base_metrics(query.expr)
        if name.startswith("ign_")
    }
    assert shown <= exposed()
    assert {family(name) for name in shown} == {
        family(name) for name in exposed() if name.startswith("ign_")
    }


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count|total)$", "", name)


# docs/operations.md names what there is


CONTRACT = (OPERATIONS.parent / "http-api.md").read_text(encoding="utf-8")
EMPHASISED = re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", TEXT.partition("\n## Runbooks\n")[2])
PAGES = {"Overview", "Service discovery", "Configuration", "Targets"}  # of Grafana and Prometheus
TITLES = [panel["title"] for each in dashboards().values() for panel in panels(each)]
NAMED = {
    "metrics": ({name for name, _ in ROWS}, exposed() | {family(name) for name in exposed()}),
    "settings": (
        set(re.findall(rf"`({PREFIX}[A-Z_]+)", TEXT)),
        set(map(variable_of, Settings.model_fields)),
    ),
    "panels": (
        {" ".join(name.split()) for name in EMPHASISED},
        PAGES | set(TITLES),
    ),
    "codes": (
        set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`:", TEXT)),
        set(re.findall(r"`(\w+)`", CONTRACT)),
    ),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_it_names_exists(kind: str) -> None:
    named, known = NAMED[kind]
    assert len(named) > 5
    assert named <= known
