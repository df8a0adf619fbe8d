"""The dashboard and what provisions it, as far as they can be read; `test_live` asks its questions."""

import re

import yaml

from tests.helpers.live import ROOT
from tests.slow.monitoring.files import CONFIG, DASHBOARD, chosen, dashboard, names, panel_queries, panels, rules
from tests.slow.monitoring.test_rules import base_metrics, exposed

PROVISIONING = ROOT / "docker" / "grafana" / "provisioning"


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["title"]
        assert len(panel["description"].split()) >= 3, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"] or panel["type"] == "table", panel["title"]


def test_legends_use_only_grouped_labels() -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            if grouped:
                assert all(named <= set(re.split(r",\s*", by)) for by in grouped), (panel["title"], target["expr"])


def test_panel_ids_are_unique() -> None:
    found = dashboard()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)


def test_every_metric_of_the_service_is_shown() -> None:
    shown = {name for query in panel_queries() for name in base_metrics(query.expr) if name.startswith("ign_")}
    assert shown <= exposed()
    assert {family(name) for name in shown} == {family(name) for name in exposed() if name.startswith("ign_")}


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count|total)$", "", name)


def test_recorded_series_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for query in panel_queries() for name in names(query.expr) if ":" in name}
    assert asked
    assert asked <= recorded


def test_all_variables_are_used() -> None:
    variables = dashboard()["templating"]["list"]
    assert [variable["name"] for variable in variables] == ["datasource", "instance", "model"]
    assert all(variable["allValue"] == ".*" for variable in variables[1:])
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text(encoding="utf-8")))
    assert used == {"datasource", "instance", "model", "__rate_interval", "__all"}
    assert all(base_metrics(chosen(variable["query"]["query"])) for variable in variables[1:])
    sources = {str(panel["datasource"]) for panel in panels()} | {
        str(target["datasource"]) for panel in panels() for target in panel["targets"]
    }
    assert sources == {str({"type": "prometheus", "uid": "${datasource}"})}


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["url"].startswith("http://prometheus:")
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"].split()[0] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "ign.yml").read_text())["providers"]
    assert provider["options"]["path"].rsplit("/", 1)[-1] == DASHBOARD.parent.name


def test_the_gpu_job_scrapes_the_exporter_of_compose() -> None:
    added = yaml.safe_load((ROOT / "docker" / "compose.gpu-metrics.yml").read_text(encoding="utf-8"))["services"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["scrape_configs"]}
    (lookup,) = jobs["gpu"]["dns_sd_configs"]
    assert list(added) == lookup["names"]
    (exporter,) = added.values()
    assert exporter["expose"] == [str(lookup["port"])]
    assert exporter["profiles"] == ["monitoring"]
