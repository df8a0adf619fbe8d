"""Dockerfiles, locks and Compose as far as they can be read; `tests/slow/containers` builds and runs them."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from service.server import uvicorn_server
from service.settings import load_settings
from tests.helpers.live import ROOT

TARGETS = pytest.mark.parametrize("target", ["cpu", "gpu"])
DOCKERFILES = pytest.mark.parametrize("file", ["Dockerfile", "docker/export.Dockerfile", "deploy/kuberay/Dockerfile"])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Dockerfiles


def stages(file: str) -> dict[str, list[str]]:
    """Stage of a Dockerfile → its instructions, continued lines joined; the last one is built by default."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", read(file), flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("FROM "):
            found[line.split()[-1]] = [line]
        elif found:  # before the first stage are arguments
            list(found.values())[-1].append(line)
    return found


def lineage(stage: str, file: str = "Dockerfile") -> list[str]:
    """Instructions of a stage behind those of the stages it is built on."""
    instructions = stages(file)[stage]
    parent = instructions[0].split()[1]
    return (lineage(parent, file) if parent in stages(file) else []) + instructions


@TARGETS
def test_an_image_runs_as_a_user_without_rights_and_sends_no_telemetry(target: str) -> None:
    instructions = lineage(target)
    (user,) = (line.split()[1] for line in instructions if line.startswith("USER "))
    assert all(int(number) > 0 for number in user.split(":"))
    assert variables(target)["ORT_DISABLE_TELEMETRY"] == "1"


def variables(target: str) -> dict[str, str]:
    text = " ".join(line for line in lineage(target) if line.startswith("ENV "))
    return dict(re.findall(r"(\w+)=(\S+)", text))


@pytest.mark.parametrize(("target", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_each_image_names_its_device(target: str, device: str) -> None:
    settings = {name: value for name, value in variables(target).items() if name.startswith("IGN_")}
    assert load_settings(settings).device == device


def test_the_gpu_image_is_the_default() -> None:
    assert list(stages("Dockerfile"))[-1] == "gpu"


@DOCKERFILES
def test_the_builder_is_sent_what_the_dockerfile_copies(file: str) -> None:
    sent = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copies = [
        line for stage in stages(file).values() for line in stage if line.startswith("COPY ") and "--from" not in line
    ]
    sources = {name for line in copies for name in line.split()[1:-1] if not name.startswith("--")}
    assert sources
    assert all(any(name == entry or name.startswith(f"{entry}/") for entry in sent) for name in sources)
    assert all(list(ROOT.glob(re.sub(r"\$\{\w+\}", "*", name))) for name in sources)


# docker/lock


def locked(target: str) -> dict[str, tuple[str, int]]:
    """Package → its version and how many files of it are allowed."""
    entries = re.split(r"^(?=[\w.-]+==)", read(f"docker/lock/{target}.txt"), flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        name, version = entry.split()[0].split("==")
        found[name] = (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
    return found


def needs(*extras: str) -> list[Requirement]:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for group in groups for line in group]


LOCKS = {
    "cpu": ["cpu"],
    "gpu": ["gpu"],
    "export": ["cpu", "train"],
    "ray-cpu": ["cpu", "ray"],
    "ray-gpu": ["gpu", "ray"],
    "ci": ["cpu", "train", "avatars", "dev"],
    "ci-ray": ["cpu", "bulk", "ray"],
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_of_what_the_project_needs(name: str) -> None:
    lock = locked(name)
    assert all(files for _, files in lock.values())
    unlocked = {"torch", "torchvision"} if name == "ci" else set()
    missing = {need.name for need in needs(*LOCKS[name])} - set(lock)
    assert missing == unlocked, "run `make lock`"
    stale = [
        str(need)
        for need in needs(*LOCKS[name])
        if need.name not in unlocked and Version(lock[need.name][0]) not in need.specifier
    ]
    assert not stale, "run `make lock`"


@TARGETS
def test_the_service_s_images_hold_no_tools(target: str) -> None:
    assert not {"torch", "onnx", "pip", "setuptools"} & set(locked(target))


def test_ray_is_the_one_of_its_image() -> None:
    (version,) = re.findall(r"ARG BASE=rayproject/ray:([\d.]+)-py311", read("deploy/kuberay/Dockerfile"))
    assert locked("ray-cpu")["ray"][0] == locked("ray-gpu")["ray"][0] == version


@DOCKERFILES
def test_images_install_only_what_is_locked(file: str) -> None:
    installs = [line for stage in stages(file).values() for line in stage if re.match("RUN .*pip.* install", line)]
    assert installs
    assert all("--require-hashes -r " in line and "--only-binary :all:" in line for line in installs)


def test_the_locks_differ_by_the_runtime_alone() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    apart = {name for name in cpu.keys() | gpu.keys() if cpu.get(name) != gpu.get(name)}
    assert {name for name in apart if not name.startswith("nvidia-")} == {"onnxruntime", "onnxruntime-gpu"}
    assert {"nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime"} <= apart


# Compose


class Loader(yaml.SafeLoader):
    """YAML with the tag by which a Compose override takes something away."""


Loader.add_constructor("!reset", lambda _loader, _node: "reset")


def services(name: str = "docker-compose.yml") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.load(read(name), Loader)["services"]
    return found


def test_compose_serves_on_as_many_gpus_as_it_reserves() -> None:
    service = services()["ign"]
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    count = "${SERVICE_GPUS:-1}"
    assert devices == [{"driver": "nvidia", "count": count, "capabilities": ["gpu"]}]
    assert service["build"]["target"] == "gpu"
    assert service["environment"]["IGN_DEVICE"] == "cuda"
    assert count in service["environment"].values()


@pytest.mark.parametrize("name", ["ign", "front", "prometheus", "grafana"])
def test_every_service_is_hardened_and_bounded(name: str) -> None:
    service = services()[name]
    assert (service["read_only"], service["cap_drop"], service["restart"]) == (True, ["ALL"], "unless-stopped")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    binds = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert binds
    assert all(volume["read_only"] and not volume["bind"]["create_host_path"] for volume in binds)


def test_only_the_front_is_reached_from_elsewhere() -> None:
    ports = {name: service["ports"] for name, service in services().items()}
    assert {name for name, open_ports in ports.items() if ":-127.0.0.1:" not in open_ports[0]} == {"front"}
    assert all(len(open_ports) == 1 for open_ports in ports.values())


def test_only_the_service_runs_without_a_profile() -> None:
    profiles = {name: service.get("profiles") for name, service in services().items()}
    expected = {"ign": None, "front": ["front"], "prometheus": ["monitoring"], "grafana": ["monitoring"]}
    assert profiles == expected


def test_compose_without_a_gpu() -> None:
    (override,) = services("docker/compose.cpu.yml").values()
    assert override["deploy"]["resources"]["reservations"] == "reset"
    assert override["build"]["target"] == override["environment"]["IGN_DEVICE"] == "cpu"


def test_every_variable_of_compose_is_explained() -> None:
    names = set(re.findall(r"\$\{(\w+)", read("docker-compose.yml")))
    assert names
    assert names == set(re.findall(r"^\| `([A-Z_]+)`", read("docs/deployment.md"), flags=re.MULTILINE))


def test_nginx_lets_through_what_the_service_allows() -> None:
    text = read("docker/nginx/nginx.conf")
    shown = re.findall(r"(\d+)([ms]);\s*# (IGN_\w+)", text)
    found = {setting: int(number) * (2**20 if unit == "m" else 1) for number, unit, setting in shown}
    defaults = load_settings({})
    assert found == {
        "IGN_MAX_BODY_BYTES": defaults.max_body_bytes,
        "IGN_BODY_TIMEOUT_S": defaults.body_timeout_s,
        "IGN_HEAD_TIMEOUT_S": defaults.head_timeout_s,
        "IGN_STREAM_TIMEOUT_S": defaults.stream_timeout_s,
    }


def test_idle_connections_are_closed_by_the_proxy_and_not_under_it() -> None:
    (proxy,) = re.findall(r"keepalive_timeout (\d+)s;", read("docker/nginx/nginx.conf"))
    idle = uvicorn_server.config(print).timeout_keep_alive
    assert int(proxy) < idle
    ray = re.findall(r"keep_alive_timeout_s: (\d+)", read("deploy/kuberay/rayservice.yaml"))
    assert ray == [str(idle)]
