"""Dockerfiles, locks and Compose as far as they can be read; `tests/slow/containers` builds and
runs them.
"""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from service.server import open_connections
from service.settings import load_settings
from tests.helpers.live import ROOT

RAYSERVICE = "deploy/chart/ign-service/templates/rayservice.yaml"
DOCKERFILES = pytest.mark.parametrize(
    "file", ["Dockerfile", "docker/export.Dockerfile", "deploy/kuberay/Dockerfile"]
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def stages(file: str) -> dict[str, list[str]]:
    """Stage of a Dockerfile → its instructions, continued lines joined; the last one is built by
    default.
    """
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", read(file), flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("FROM "):
            found[line.split()[-1]] = [line]
        elif found:  # before the first stage are arguments
            list(found.values())[-1].append(line)
    return found


def lineage(stage: str) -> list[str]:
    """Instructions of a stage behind those of the stages it is built on."""
    instructions = stages("Dockerfile").get(stage, [])
    return lineage(instructions[0].split()[1]) + instructions if instructions else []


@pytest.mark.parametrize(("target", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_an_image_runs_as_a_user_without_rights_on_its_device_and_sends_no_telemetry(
    target: str, device: str
) -> None:
    instructions = lineage(target)
    (user,) = (line.split()[1] for line in instructions if line.startswith("USER "))
    assert all(int(number) > 0 for number in user.split(":"))
    text = " ".join(line for line in instructions if line.startswith("ENV "))
    variables = dict(re.findall(r"(\w+)=(\S+)", text))
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"
    assert (
        load_settings(
            {name: value for name, value in variables.items() if name.startswith("IGN_")}
        ).device
        == device
    )
    assert not {"torch", "onnx", "pip", "setuptools"} & set(locked(target))


@DOCKERFILES
def test_the_builder_is_sent_what_the_dockerfile_copies_and_installs_what_is_locked(
    file: str,
) -> None:
    sent = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    lines = [line for stage in stages(file).values() for line in stage]
    copies = [line for line in lines if line.startswith("COPY ") and "--from" not in line]
    sources = {name for line in copies for name in line.split()[1:-1] if not name.startswith("--")}
    assert sources
    assert all(
        any(name == entry or name.startswith(f"{entry}/") for entry in sent) for name in sources
    )
    assert all(list(ROOT.glob(re.sub(r"\$\{\w+\}", "*", name))) for name in sources)
    installs = [line for line in lines if re.match("RUN .*pip.* install", line)]
    assert installs
    assert all(
        "--require-hashes -r " in line and "--only-binary :all:" in line for line in installs
    )


# docker/lock


def locked(target: str) -> dict[str, tuple[str, int]]:
    """Package → its version and how many files of it are allowed."""
    entries = re.split(r"^(?=[\w.-]+==)", read(f"docker/lock/{target}.txt"), flags=re.MULTILINE)[1:]
    pairs = ((*entry.split()[0].split("=="), entry) for entry in entries)
    return {
        name: (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
        for name, version, entry in pairs
    }


LOCKS = {
    "cpu": ["cpu", "store"],
    "gpu": ["gpu", "store"],
    "gpu-cuda12": ["store"],
    "export": ["cpu", "train"],
    "ray-cpu": ["cpu", "ray", "store"],
    "ray-gpu": ["gpu", "ray", "store"],
    "ci": ["cpu", "train", "avatars", "dev"],
    "ci-ray": ["cpu", "bulk", "ray", "store"],
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_of_what_the_project_needs(name: str) -> None:
    lock = locked(name)
    project = tomllib.loads(read("pyproject.toml"))["project"]
    groups = [
        project["dependencies"],
        *(project["optional-dependencies"][extra] for extra in LOCKS[name]),
    ]
    needs = [Requirement(line) for group in groups for line in group]
    assert all(files for _, files in lock.values())
    unlocked = {"ign-client", *(("torch", "torchvision") if name == "ci" else ())}
    assert {need.name for need in needs} - set(lock) == unlocked, "run `make lock`"
    kept = [need for need in needs if need.name not in unlocked]
    assert all(Version(lock[need.name][0]) in need.specifier for need in kept), "run `make lock`"


def test_the_locks_differ_by_the_runtime_alone() -> None:
    cpu = locked("cpu")
    gpu = locked("gpu")
    cuda12 = locked("gpu-cuda12")
    for lock in (gpu, cuda12):
        apart = {name for name in cpu.keys() | lock.keys() if cpu.get(name) != lock.get(name)}
        assert {name for name in apart if not name.startswith("nvidia-")} == {
            "onnxruntime",
            "onnxruntime-gpu",
        }
    (version,) = re.findall(
        r"ARG BASE=rayproject/ray:([\d.]+)-py311", read("deploy/kuberay/Dockerfile")
    )
    assert locked("ray-cpu")["ray"][0] == locked("ray-gpu")["ray"][0] == version
    assert f'rayVersion: "{version}"' in read(RAYSERVICE)


# Compose and nginx


def test_every_variable_of_compose_is_explained() -> None:
    files = read("docker-compose.yml") + read("docker/compose.gpu.yml")
    names = set(re.findall(r"\$\{(\w+)", files))
    assert names
    assert names == set(
        re.findall(r"^\| `([A-Z_]+)`", read("docs/deployment.md"), flags=re.MULTILINE)
    )


def test_compose_needs_nothing_and_is_for_this_machine_only() -> None:
    """No variable is required, no GPU, and without any variable all ports are local."""
    text = read("docker-compose.yml")
    assert not re.findall(r"\$\{\w+:?\?", text)
    # an empty value would win over that of service.env
    assert not re.findall(r"IGN_\w+(?:: |=)\$\{\w+:(?:-\}|\+)", text)
    services = yaml.safe_load(text)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(re.match(r"\$\{\w+:-127\.0\.0\.1:", port) for port in ports)
    assert set(services["ign"]["deploy"]["resources"]) == {"limits"}


def test_a_container_is_killed_after_what_it_accepted_is_answered() -> None:
    assert load_settings({"IGN_DRAIN_DELAY_S": "2"}).drain_s == 32
    text = read("docker-compose.yml") + read("docs/deployment.md")
    graces = re.findall(r"(?:stop_grace_period:|--stop-timeout) (\d+)", text)
    assert len(graces) == 3
    assert min(map(int, graces)) > load_settings({}).drain_s + 5  # docs/security.md


def test_nginx_lets_through_what_the_service_allows() -> None:
    shown = re.findall(r"(\d+)([ms]);\s*# IGN_(\w+)", read("docker/nginx/nginx.conf"))
    limits = {
        setting.lower(): int(number) * (2**20 if unit == "m" else 1)
        for number, unit, setting in shown
    }
    assert set(limits) == {
        "max_body_bytes",
        *(f"{what}_timeout_s" for what in ("receive", "request", "stream")),
    }
    assert limits == {name: getattr(load_settings({}), name) for name in limits}


def test_idle_connections_are_closed_by_the_proxy_and_not_under_it() -> None:
    (proxy,) = re.findall(r"keepalive_timeout (\d+)s;", read("docker/nginx/nginx.conf"))
    idle = open_connections.KEEP_ALIVE_S
    assert int(proxy) < idle
    assert re.findall(r"keep_alive_timeout_s: (\d+)", read(RAYSERVICE)) == [str(idle)]
