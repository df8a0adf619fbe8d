"""What Prometheus and Grafana are given, read as they read it."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import yaml

from tests.helpers.live import ROOT

PROMETHEUS = ROOT / "docker" / "prometheus"
CONFIG = PROMETHEUS / "prometheus.yml"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((ROOT / "tests" / "slow" / "monitoring").glob("*.test.yml"))
DASHBOARDS = sorted((ROOT / "docker" / "grafana" / "dashboards").glob("*.json"))
OPERATIONS = ROOT / "docs" / "operations.md"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed; .ci/tools installs them on Debian",
)

_SELECTOR = re.compile(
    r"""(?<![\w:"|])((?:job|model):ign_\w+:\w+|(?:ign|process|DCGM)_\w+|up|ALERTS)\b(\{[^}]*\})?"""
)


@dataclass(frozen=True)
class Query:
    """An expression, and where it stands."""

    place: str
    expr: str

    def __str__(self) -> str:
        return self.place


@cache
def rules() -> list[dict[str, Any]]:
    """Every rule there is, recording and alerting."""
    groups = [
        group
        for file in RULES
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts, by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """By file name, without its suffix."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in DASHBOARDS}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[Query]:
    """What the dashboards ask, as they do with every instance and model chosen."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Query(f"{panel['title']} {target['refId']}", chosen(target["expr"]))
        for note in dashboard["annotations"]["list"]:
            yield Query(f"annotation {note['name']} of {name}", chosen(note["expr"]))


def chosen(expr: str) -> str:
    """The expression with Grafana's variables filled in."""
    for name, value in {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*"}.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def rule_queries() -> list[Query]:
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def selectors(expr: str) -> set[str]:
    """The series that an expression begins with."""
    return {name + (labels or "") for name, labels in _SELECTOR.findall(expr)}


def names(expr: str) -> set[str]:
    """The metrics among them, without labels."""
    return {name for name, _ in _SELECTOR.findall(expr)}
