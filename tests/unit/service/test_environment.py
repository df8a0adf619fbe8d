import os
from pathlib import Path

import pytest

from service.domain.errors import StartupError
from service.environment import available_cpus, memory_limit, prepare_process

HERE = {"proc/self/cgroup": "0::/\n"}
MEMORY = "sys/fs/cgroup/memory.max"
MACHINE = "proc/meminfo"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "quotas", "cpus"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"": "max 100000\n"}, 8),
        ("0::/\n", {"": "damaged\n"}, 8),
        ("0::/\n", {"": "50000 100000\n"}, 1),
        ("0::/\n", {"": "900000 100000\n"}, 8),
        ("0::/a/b\n", {"a/": "100000 100000\n", "a/b/": "300000 100000\n"}, 1),
        ("0::/of/the/host\n", {"": "200000 100000\n"}, 2),
        ("2:cpu,cpuacct:/box\n0::/\n", {"": "250000 100000\n"}, 2),
        ("1:cpu:/\n", {"": "250000 100000\n"}, 8),  # version 1 alone
    ],
)
def test_cpus_are_what_quotas_and_affinity_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, quotas: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    files = {f"sys/fs/cgroup/{group}cpu.max": quota for group, quota in quotas.items()}
    assert available_cpus(root=tree(tmp_path, files | {"proc/self/cgroup": groups})) == cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 0),
        ({MACHINE: "damaged"}, 0),
        ({MACHINE: "MemTotal: 2048 kB\nMemFree: 1 kB\n", MEMORY: "max\n"}, 2 << 20),
        ({MACHINE: "MemTotal: 2048 kB\n", MEMORY: "1048576\n"}, 1 << 20),
        ({MACHINE: "MemTotal: 2048 kB\n", MEMORY: "4194304\n"}, 2 << 20),
    ],
)
def test_memory_is_that_of_the_machine_or_of_the_control_group(
    tmp_path: Path, files: dict[str, str], limit: int
) -> None:
    assert memory_limit(root=tree(tmp_path, HERE | files)) == limit


@pytest.mark.parametrize(
    ("names", "says"),
    [({"onnxruntime", "onnxruntime-gpu"}, "pip uninstall"), (set[str](), "not installed")],
)
def test_two_or_no_runtimes_refuse_to_start(
    names: set[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.environment.installed_onnxruntimes", lambda: names)
    with pytest.raises(StartupError, match=says):
        prepare_process()


def test_a_prepared_process_has_its_variables_unless_they_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "kept")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    prepare_process()
    assert (os.environ["NVIDIA_TF32_OVERRIDE"], os.environ["ORT_DISABLE_TELEMETRY"]) == (
        "kept",
        "1",
    )
