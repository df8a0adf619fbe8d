"""The unchanged Compose files, brought up by `docker compose` against podman's socket, on a network
of their own.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ign_client import Client, Unauthorized
from tests.contract.harness import write_keys
from tests.helpers.live import free_port, run, until
from tests.slow.containers.engine import PATIENCE_S, Container, Engine

FILES = "docker-compose.yml"
ON_GPUS = f"{FILES}:docker/compose.gpu.yml"
UP = ("up", "--detach", "--pull=never", "--no-build")


@contextmanager
def listening(engine: Engine, path: Path) -> Iterator[str]:
    """podman's own service, as the Docker engine that it stands for."""
    url = f"unix://{path}"
    with (path.parent / "podman.log").open("wb") as log:
        serving = subprocess.Popen(
            ["podman", "system", "service", "--time=0", url],
            env=engine.environment,
            stdout=log,
            stderr=log,
        )
        try:
            until(path.is_socket, lambda: "podman's service does not listen", PATIENCE_S)
            yield url
        finally:
            serving.terminate()
            serving.wait(PATIENCE_S)


@dataclass(frozen=True)
class Project:
    """A Compose project."""

    engine: Engine
    name: str
    variables: dict[str, str]

    def say(self, *arguments: str) -> str:
        """What docker compose prints."""
        line = ("docker", "compose", "--project-name", self.name, *arguments)
        done = run(*line, **self.engine.environment | self.variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> Container:
        return Container(self.engine, f"{self.name}-{service}-1")


@pytest.fixture(scope="session")
def compose() -> None:
    if shutil.which("docker") is None or run("docker", "compose", "version").returncode:
        pytest.skip("no docker compose")


@pytest.fixture
def project(engine: Engine, compose: None, cpu: str, tmp_path: Path) -> Iterator[Project]:
    keys = write_keys(tmp_path, {"a": "infer"})
    keys.chmod(0o644)
    variables = {
        "COMPOSE_FILE": FILES,
        "DOCKER_BUILDKIT": "0",
        "SERVICE_KEYS": str(keys),
        "SERVICE_SUBNET": f"172.28.{random.randrange(1, 250)}",
        "SERVICE_LISTEN": f"127.0.0.1:{free_port()}",
    }
    with listening(engine, tmp_path / "podman.sock") as url:
        found = Project(
            engine, f"ign-test-{random.randrange(10**9)}", {**variables, "DOCKER_HOST": url}
        )
        try:
            yield found
        finally:
            found.say("down", "--volumes", "--timeout", "20")


@pytest.mark.parametrize(
    ("files", "gpus"),
    [
        (FILES, {}),
        (ON_GPUS, {"ign": 1}),
        (f"{ON_GPUS}:docker/compose.gpu-metrics.yml", {"ign": 1, "dcgm-exporter": -1}),
    ],
)
def test_the_files_fit_together(
    compose: None, tmp_path: Path, files: str, gpus: dict[str, int]
) -> None:
    """As Compose merges them; the linter reads one file at a time."""
    variables = {"COMPOSE_FILE": files, "IGN_VERSION": "1.2.3"}
    merged = run("docker", "compose", "--profile", "*", "config", **variables)
    services = yaml.safe_load(merged.stdout)["services"]
    assert services["ign"]["image"] == f"ign-service:1.2.3-{'cpu' if files == FILES else 'gpu'}"
    assert not {"IGN_API_KEYS_FILE", "IGN_PUBLIC"} & set(services["ign"]["environment"])
    reserved = {
        name: device["count"]
        for name, service in services.items()
        for device in service["deploy"]["resources"].get("reservations", {}).get("devices", [])
    }
    assert reserved == gpus
    (tmp_path / "merged.yml").write_text(merged.stdout)
    options = ["--skip-suppressed", "--fail-on", "low", "--config", "docker/compose-lint.yml"]
    linter = Path(sys.executable).with_name("compose-lint")
    looked = run(linter, *options, tmp_path / "merged.yml")
    assert looked.returncode == 0, looked.stdout


def test_up_is_healthy_bounded_and_asks_for_keys(project: Project) -> None:
    merged = json.loads(project.say("config", "--format", "json"))["services"]["ign"]
    assert set(merged["deploy"]["resources"]) == {"limits"}  # without a GPU, none is reserved
    project.say(*UP)
    service = project.container("ign")
    service.healthy()

    with (
        Client(f"http://{project.variables['SERVICE_LISTEN']}") as stranger,
        pytest.raises(Unauthorized),
    ):
        stranger.generate(n=1)
    with Client(f"http://{project.variables['SERVICE_LISTEN']}", api_key="a-key") as client:
        assert len(client.generate(n=3, seed=7)) == 3

    host = project.engine.inspect(service.name)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert (host["Memory"], host["PidsLimit"]) == (4 * 2**30, 512)
    mounts = {
        mount["Destination"]: mount["RW"]
        for mount in project.engine.inspect(service.name)["Mounts"]
    }
    assert mounts["/run/ign/models"] is mounts["/run/ign/keys.json"] is False
    status = project.engine.say(
        "exec", service.name, "grep", "-E", "^(CapEff|NoNewPrivs|Uid)", "/proc/1/status"
    )
    assert status.split() == ["Uid:", *["10001"] * 4, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]

    project.say("stop")
    assert service.state["ExitCode"] == 0
    assert "draining" in service.log()
