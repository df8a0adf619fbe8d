"""A real Prometheus with the project's own configuration, looking more often than it would in earnest."""

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

from tests.slow.monitoring.files import CONFIG, PROMETHEUS, RULES

PATIENCE_S = 30.0
_LISTENING = re.compile(r'msg="Listening on".* address=(\S+)')


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    client: httpx.Client

    def query(self, expr: str) -> list[float]:
        """The values of an instant query; raises for one that does not parse."""
        found: list[dict[str, Any]] | list[Any] = self._get("query", query=expr)["result"]
        return [float(sample["value"][1]) for sample in found if isinstance(sample, dict)]

    def until(self, expr: str, condition: Callable[[list[float]], bool]) -> list[float]:
        """Ask, and ask again, until the answer is as expected or patience is at its end; the last answer.

        Every look is a request.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not condition(found := self.query(expr)) and time.monotonic() < deadline:
            pass
        return found

    def exemplars(self, expr: str) -> list[dict[str, str]]:
        """The labels of the exemplars of an expression."""
        now = time.time()
        series = self._ask("query_exemplars", query=expr, start=str(now - 3600), end=str(now))
        return [exemplar["labels"] for one in series for exemplar in one["exemplars"]]

    def labels(self) -> set[str]:
        """The names of all labels there are."""
        names: set[str] = set(self._ask("labels"))
        return names

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, and how it did when it was last evaluated."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, and how that went."""
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        data: dict[str, Any] = self._ask(path, **parameters)
        return data

    def _ask(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]


@contextmanager
def running(
    folder: Path, target: str, labels: Mapping[str, str] | None = None, relabel: Sequence[Mapping[str, str]] = ()
) -> Iterator[Prometheus]:
    """Watch the service at ``target``, `host:port`, until the block ends; files go into ``folder``.

    Args:
        labels: of the target, where it has more than Compose's.
        relabel: what is done with them.
    """
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_configuration(target, labels or {}, relabel)), encoding="utf-8")
    log = folder / "log"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command.append("--enable-feature=exemplar-storage")  # as in docker-compose.yml
    with log.open("wb") as written:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=written)
        try:
            with httpx.Client(base_url=_address(process, log), trust_env=False, timeout=PATIENCE_S) as client:
                yield Prometheus(client)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _configuration(target: str, labels: Mapping[str, str], relabel: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The project's, with this target, and intervals of which some pass within a test."""
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    found["global"] = {"scrape_interval": "200ms", "evaluation_interval": "300ms"}
    assert [str(PROMETHEUS / name) for name in found["rule_files"]] == [str(RULES[0].parent / "*.yml")]
    found["rule_files"] = [str(file) for file in RULES]
    service = next(job for job in found["scrape_configs"] if job["job_name"] == "ign")
    service["static_configs"] = [{"targets": [target], "labels": dict(labels)}]
    service["relabel_configs"] = [dict(step) for step in relabel]
    found["scrape_configs"] = [service]
    return found


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        said = log.read_text(encoding="utf-8")
        found = _LISTENING.search(said)
        if found and "Server is ready to receive web requests" in said:
            return f"http://{found[1]}"
    raise AssertionError("Prometheus did not start:\n" + log.read_text(encoding="utf-8"))
