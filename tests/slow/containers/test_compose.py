"""The unchanged Compose files, brought up by `docker compose` against podman's socket, on a network
of their own.
"""

import hashlib
import json
import random
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ign_client import Client, Unauthorized
from tests.helpers.live import ROOT, certificate, environment, free_port, until
from tests.slow.containers.engine import BASE, PATIENCE_S, Container, Engine

KEY = "a-key-for-the-tests"
FILES = "docker-compose.yml:docker/compose.cpu.yml"
# Debian's package that stands in for a public image, its release, and the image's entry point.
STAND_INS = {
    "front": ("nginx-light", "trixie", "[]"),
    "prometheus": ("prometheus", "bookworm", '["/usr/bin/prometheus"]'),
}
UP = ("up", "--detach", "--pull=never", "--no-build")


def image_of(service: str) -> str:
    """The image that Compose runs for a service, with its registry and without a digest."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return f"docker.io/{services[service]['image'].partition('@')[0]}"


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

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["docker", "compose", "--project-name", self.name, *arguments],
            cwd=ROOT,
            env=self.engine.environment | self.variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def say(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> Container:
        return Container(self.engine, f"{self.name}-{service}-1")

    def address(self, service: str) -> str:
        return self.variables[f"{service.upper()}_LISTEN"]


@pytest.fixture(scope="session")
def compose() -> None:
    version = ["docker", "compose", "version"]
    if (
        shutil.which("docker") is None
        or subprocess.run(version, capture_output=True, check=False).returncode
    ):
        pytest.skip("no docker compose")


@pytest.fixture
def project(engine: Engine, compose: None, cpu: str, tmp_path: Path) -> Iterator[Project]:
    keys = tmp_path / "keys.json"
    keys.write_text(
        json.dumps(
            [{"name": "a", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "scopes": ["infer"]}]
        )
    )
    keys.chmod(0o644)
    stand_ins = tmp_path / "stand-ins.yml"  # they cannot have the digests of the public images
    stand_ins.write_text(
        yaml.safe_dump({"services": {name: {"image": image_of(name)} for name in STAND_INS}})
    )
    variables = {
        "COMPOSE_FILE": f"{FILES}:{stand_ins}",
        "DOCKER_BUILDKIT": "0",
        "SERVICE_KEYS": str(keys),
        "SERVICE_SUBNET": f"172.28.{random.randrange(1, 250)}",
        "FRONT_TLS": str(tmp_path / "tls"),
        **{
            f"{name}_LISTEN": f"127.0.0.1:{free_port()}"
            for name in ("SERVICE", "FRONT", "PROMETHEUS", "GRAFANA")
        },
    }
    with listening(engine, tmp_path / "podman.sock") as url:
        found = Project(
            engine, f"ign-test-{random.randrange(10**9)}", {**variables, "DOCKER_HOST": url}
        )
        try:
            yield found
        finally:
            found.say("--profile", "*", "down", "--volumes", "--timeout", "20")


@pytest.fixture
def neighbours(engine: Engine, base: str, tmp_path: Path) -> None:
    """nginx and Prometheus under the names that Compose knows, built of Debian's packages where
    they are not there.
    """
    for service, (package, release, entrypoint) in STAND_INS.items():
        if not engine.has(image_of(service)):
            context = tmp_path / service
            context.mkdir()
            (context / "Containerfile").write_text(
                f"FROM {BASE}\nRUN sed -i 's/trixie/{release}/g' /etc/apt/sources.list && "
                f"apt-get update -q && \\\n    apt-get install -yq --no-install-recommends "
                f"{package}\nENTRYPOINT {entrypoint}\n"
            )
            engine.build(image_of(service), context=context)


@pytest.fixture
def trust(tmp_path: Path) -> ssl.SSLContext:
    """Trusts the certificate in the folder that nginx is given."""
    (tmp_path / "tls").mkdir()
    made = certificate(tmp_path / "tls")
    made.with_suffix(".key").chmod(0o644)
    return ssl.create_default_context(cafile=str(made))


@pytest.mark.parametrize(
    ("files", "gpus"),
    [
        (FILES, {}),
        ("docker-compose.yml", {"ign": 1}),
        ("docker-compose.yml:docker/compose.gpu-metrics.yml", {"ign": 1, "dcgm-exporter": -1}),
    ],
)
def test_the_files_fit_together(
    compose: None, tmp_path: Path, files: str, gpus: dict[str, int]
) -> None:
    """As Compose merges them; the linter reads one file at a time."""
    merged = subprocess.run(
        ["docker", "compose", "--profile", "*", "config"],
        cwd=ROOT,
        env=environment(COMPOSE_FILE=files, SERVICE_KEYS="./keys.json", IGN_VERSION="1.2.3"),
        capture_output=True,
        text=True,
        check=True,
    )
    services = yaml.safe_load(merged.stdout)["services"]
    assert services["ign"]["image"] == f"ign-service:1.2.3-{'cpu' if files == FILES else 'gpu'}"
    reserved = {
        name: device["count"]
        for name, service in services.items()
        for device in service["deploy"]["resources"].get("reservations", {}).get("devices", [])
    }
    assert reserved == gpus
    (tmp_path / "merged.yml").write_text(merged.stdout)
    options = ["--skip-suppressed", "--fail-on", "low", "--config", "docker/compose-lint.yml"]
    linter = Path(sys.executable).with_name("compose-lint")
    looked = subprocess.run(
        [linter, *options, tmp_path / "merged.yml"], cwd=ROOT, capture_output=True, check=False
    )
    assert looked.returncode == 0, looked.stdout.decode()


def test_up_is_healthy_bounded_and_asks_for_keys(project: Project) -> None:
    merged = json.loads(project.say("config", "--format", "json"))["services"]["ign"]
    assert set(merged["deploy"]["resources"]) == {"limits"}  # without a GPU, none is reserved
    project.say(*UP)
    service = project.container("ign")
    service.healthy()

    with Client(f"http://{project.address('service')}") as stranger, pytest.raises(Unauthorized):
        stranger.generate(n=1)
    with Client(f"http://{project.address('service')}", api_key=KEY) as client:
        assert len(client.generate(n=3, seed=7)) == 3

    host = project.engine.inspect(service.name)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert (host["Memory"], host["PidsLimit"]) == (4 * 2**30, 512)
    mounts = {
        mount["Destination"]: mount["RW"]
        for mount in project.engine.inspect(service.name)["Mounts"]
    }
    assert mounts["/app/models"] is mounts["/run/ign/keys.json"] is False
    status = project.engine.say(
        "exec", service.name, "grep", "-E", "^(CapEff|NoNewPrivs|Uid)", "/proc/1/status"
    )
    assert status.split() == ["Uid:", *["10001"] * 4, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]

    project.say("stop")
    assert service.state["ExitCode"] == 0
    assert "draining" in service.log()


def test_in_front_of_it_is_nginx(project: Project, neighbours: None, trust: ssl.SSLContext) -> None:
    project.say(*UP)
    project.container("ign").healthy()  # which nginx waits for
    project.say("--profile", "front", *UP)
    url = f"https://{project.address('front')}"
    with httpx.Client(verify=trust, timeout=PATIENCE_S, trust_env=False) as http:
        until(lambda: reached(http, f"{url}/readyz"), project.container("front").log, PATIENCE_S)
        assert http.get(f"{url}/metrics").status_code == 404
        with Client(url, api_key=KEY, http_client=http) as client:
            assert len(client.generate(n=3, seed=7)) == 3


def test_prometheus_finds_it(project: Project, neighbours: None) -> None:
    project.say("--profile", "monitoring", *UP, "ign", "prometheus")
    project.container("ign").healthy()
    url = f"http://{project.address('prometheus')}/api/v1/targets"
    log = project.container("prometheus").log
    with httpx.Client(timeout=PATIENCE_S, trust_env=False) as http:
        until(
            lambda: reached(http, url) and scraped(http, url) == {"ign", "prometheus"},
            log,
            PATIENCE_S,
        )


def reached(http: httpx.Client, url: str) -> bool:
    with suppress(httpx.TransportError):
        return http.get(url).status_code == 200
    return False


def scraped(http: httpx.Client, url: str) -> set[str]:
    targets: list[dict[str, Any]] = http.get(url).json()["data"]["activeTargets"]
    return {target["labels"]["job"] for target in targets if target["health"] == "up"}
