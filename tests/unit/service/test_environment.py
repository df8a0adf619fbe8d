import os
from pathlib import Path

import pytest

from service.domain.errors import StartupError
from service.environment import available_cpus, cgroup_quota, memory_limit, prepare_process

HERE = {"proc/self/cgroup": "0::/\n"}
CPU = "sys/fs/cgroup/cpu.max"
MEMORY = "sys/fs/cgroup/memory.max"
MACHINE = "proc/meminfo"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {CPU: "max 100000\n"}, None),
        ("0::/\n", {CPU: "damaged\n"}, None),
        (
            "0::/a/b\n",
            {
                "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
            },
            1.0,
        ),
        ("0::/of/the/host\n", {CPU: "200000 100000\n"}, 2.0),
        ("2:cpu,cpuacct:/box\n0::/\n", {CPU: "250000 100000\n"}, 2.5),
        ("1:cpu:/\n", {CPU: "250000 100000\n"}, None),  # version 1 alone
    ],
)
def test_quota_of_the_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    assert cgroup_quota(tree(tmp_path, files | {"proc/self/cgroup": groups})) == quota


@pytest.mark.parametrize(
    ("quota", "cpus", "threads"),
    [("max", 8, 8), ("250000", 8, 2), ("50000", 8, 1), ("900000", 4, 4)],
)
def test_threads_are_what_quota_and_affinity_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    assert available_cpus(root=tree(tmp_path, HERE | {CPU: f"{quota} 100000\n"})) == threads


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
