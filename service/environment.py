"""What this machine grants the process: CPU threads, and which onnxruntime is installed. No onnxruntime needed."""

import contextlib
import math
import os
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError

_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu")


def cpu_threads(requested: int, *, root: Path = Path("/")) -> int:
    """Threads onnxruntime should use: what was asked for, or when 0 what this process may really use.

    onnxruntime itself counts the host's cores; in a container with a quota that means being throttled.

    Args:
        requested: 0 for automatic.
        root: where `/proc` and `/sys` are found.
    """
    if requested:
        return requested
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(root)
    return max(1, available if quota is None else min(available, math.floor(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the control groups (v2 or v1) of this process grant at most, or None when they set no bound."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount = root / "sys/fs/cgroup"
    quotas: list[float | None] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _quotas(mount, path)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(mount / "cpu", path) + _quotas(mount / controllers, path)
    return min((quota for quota in quotas if quota is not None), default=None)


def _quotas(hierarchy: Path, path: str) -> list[float | None]:
    """Of the group and its ancestors: each may bound it. In a container the path may be the host's, top excepted."""
    parts = [part for part in path.split("/") if part]
    return [_quota(hierarchy.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]


def _quota(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()  # v2; "max" is no bound
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        micros = int((group / "cpu.cfs_quota_us").read_text())  # v1; −1 is no bound
        return micros / int((group / "cpu.cfs_period_us").read_text()) if micros > 0 else None
    return None


def installed_runtimes() -> set[str]:
    """Which onnxruntime distributions are installed."""
    found = set()
    for name in _RUNTIMES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            found.add(name)
    return found


def check_installed(names: Collection[str]) -> None:
    """Refuse two onnxruntimes at once: they unpack into one folder, and the last unpacked wins.

    To be called before `service.runtime.onnx_model` is imported, which fails less clearly.

    Args:
        names: distributions, as :func:`installed_runtimes` finds them.

    Raises:
        StartupError: both are installed, or neither.
    """
    if not set(_RUNTIMES) & set(names):
        raise StartupError("onnxruntime is not installed: install this package with the extra `cpu` or `gpu`")
    if set(_RUNTIMES) <= set(names):
        raise StartupError(
            "onnxruntime and onnxruntime-gpu overwrite each other: run `pip uninstall -y onnxruntime "
            "onnxruntime-gpu`, then install this package with the extra `cpu` or `gpu`, not both"
        )


def silence_runtime() -> None:
    """Keep onnxruntime's official builds from reporting to their maker; to be called before its first import.

    Whoever wants the reports sets `ORT_DISABLE_TELEMETRY` themselves.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def keep_precision() -> None:
    """Keep NVIDIA's libraries from computing float32 in TF32; to be called before they are loaded.

    onnxruntime's own switch is taken back where cuDNN has no convolution without tensor cores, and in half precision it
    cannot be used at all. Whoever wants TF32 sets `NVIDIA_TF32_OVERRIDE` themselves.
    """
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
