"""A real Prometheus with the project's own configuration and shorter intervals."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.helpers.live import until
from tests.slow.monitoring.files import CONFIG, PROMETHEUS, RULES

PATIENCE_S = 300.0
"""For all queries of one Prometheus together: rates look back one minute, so one that stays empty
empties others.
"""


@dataclass(frozen=True)
class Prometheus:
    client: httpx.Client
    deadline: float  # of all that wait, by time.monotonic()

    def ask(self, path: str, **parameters: str) -> Any:
        response = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert response["status"] == "success", f"{parameters}: {response}"
        return response["data"]

    def query(self, expr: str) -> list[float]:
        """The values of an instant query; raises for one that does not parse."""
        return [float(sample["value"][1]) for sample in self.ask("query", query=expr)["result"]]

    def until(self, expr: str, condition: Callable[[list[float]], bool]) -> list[float]:
        """Repeat the query until its values are as expected or the deadline has passed; the last
        values.
        """
        while not condition(found := self.query(expr)) and time.monotonic() < self.deadline:
            pass
        return found

    def exemplars(self, expr: str) -> list[dict[str, str]]:
        """The labels of the exemplars of an expression."""
        now = time.time()
        series = self.ask("query_exemplars", query=expr, start=str(now - 3600), end=str(now))
        return [exemplar["labels"] for one in series for exemplar in one["exemplars"]]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, and how its last evaluation ended."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


@contextmanager
def running(
    folder: Path,
    target: str,
    labels: Mapping[str, str] | None = None,
    relabel: Sequence[Mapping[str, str]] = (),
) -> Iterator[Prometheus]:
    """Watch the service at ``target``, `host:port`, until the block ends; files go into
    ``folder``.
    """
    config = folder / "prometheus.yml"
    log = folder / "log"
    config.write_text(
        yaml.safe_dump(_configuration(target, labels or {}, relabel)), encoding="utf-8"
    )
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command.append("--enable-feature=exemplar-storage")  # as in docker-compose.yml
    with log.open("wb") as written:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=written)
        try:
            until(
                lambda: "Server is ready to receive web requests" in log.read_text(), log.read_text
            )
            found = re.search(r'msg="Listening on".* address=(\S+)', log.read_text())
            assert found is not None
            with httpx.Client(
                base_url=f"http://{found[1]}", trust_env=False, timeout=PATIENCE_S
            ) as client:
                yield Prometheus(client, time.monotonic() + PATIENCE_S)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _configuration(
    target: str, labels: Mapping[str, str], relabel: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The project's, with this target, and intervals of which some pass within a test."""
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    found["global"] = {"scrape_interval": "200ms", "evaluation_interval": "300ms"}
    assert [str(PROMETHEUS / name) for name in found["rule_files"]] == [
        str(RULES[0].parent / "*.yml")
    ]
    found["rule_files"] = [str(file) for file in RULES]
    service = next(job for job in found["scrape_configs"] if job["job_name"] == "ign")
    service["static_configs"] = [{"targets": [target], "labels": dict(labels)}]
    service["relabel_configs"] = [dict(step) for step in relabel]
    return found | {"scrape_configs": [service]}
