import os
from pathlib import Path

import pytest

from service.domain.errors import StartupError
from service.environment import (
    available_cpus,
    cgroup_quota,
    memory_limit,
    prepare_process,
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "damaged\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
            },
            1.0,
        ),
        ({"proc/self/cgroup": "0::/of/the/host\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": "2:cpu,cpuacct:/box\n0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "1:cpu:/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, None),  # version 1 alone
    ],
)
def test_quota_of_the_control_groups(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cgroup_quota(tree(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("quota", "cpus", "threads"),
    [("max", 8, 8), ("250000", 8, 2), ("50000", 8, 1), ("900000", 4, 4), ("100000", 1, 1)],
)
def test_threads_are_what_quota_and_affinity_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int, threads: int
) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    assert available_cpus(root=tmp_path) == threads


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 0),
        ({"proc/meminfo": "damaged"}, 0),
        ({"proc/meminfo": "MemTotal:       2048 kB\nMemFree:        1 kB\n"}, 2 << 20),
        ({"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 2 << 20),
        ({"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "1048576\n"}, 1 << 20),
        ({"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "4194304\n"}, 2 << 20),
    ],
)
def test_memory_is_that_of_the_machine_or_of_the_control_group(
    tmp_path: Path, files: dict[str, str], limit: int
) -> None:
    assert memory_limit(root=tree(tmp_path, {"proc/self/cgroup": "0::/\n"} | files)) == limit


@pytest.mark.parametrize(
    ("names", "says"), [({"onnxruntime", "onnxruntime-gpu"}, "pip uninstall"), (set[str](), "not installed")]
)
def test_two_or_no_runtimes_refuse_to_start(names: set[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_process()
    monkeypatch.setattr("service.environment.installed_onnxruntimes", lambda: names)
    with pytest.raises(StartupError, match=says) as caught:
        prepare_process()
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize("name", ["NVIDIA_TF32_OVERRIDE", "ORT_DISABLE_TELEMETRY"])
def test_a_prepared_process_has_its_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "kept")
    prepare_process()
    assert os.environ[name] == "kept"
    monkeypatch.delenv(name)
    prepare_process()
    assert os.environ[name] == {"NVIDIA_TF32_OVERRIDE": "0", "ORT_DISABLE_TELEMETRY": "1"}[name]
