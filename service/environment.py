"""The process's environment: the CPUs it may use, the installed onnxruntime, and variables to set
before its import.
"""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError

_METRICS_FILE: Final = "_IGN_METRICS_FILE"  # only `share_metrics` sets it


def prepare_process() -> None:
    """Check which onnxruntime is installed, and set its variables. Call it before onnxruntime is
    imported.

    Variables that are already set keep their value:

    - `ORT_DISABLE_TELEMETRY=1` stops onnxruntime's official builds from sending telemetry.
    - `NVIDIA_TF32_OVERRIDE=0` stops NVIDIA's libraries from computing float32 in TF32.
      onnxruntime's own option is not enough: it is ignored where cuDNN has a convolution for tensor
      cores only, and cannot be used with float16.

    Raises StartupError if no onnxruntime is installed, or two are.
    """
    installed = installed_onnxruntimes()
    if not installed:
        raise StartupError(
            "onnxruntime is not installed: run `pip install 'ign-service[cpu]'`, or [gpu] for CUDA"
        )
    if len(installed) > 1:  # both unpack into the same folder, and the last one wins
        raise StartupError(
            "onnxruntime and onnxruntime-gpu overwrite each other: run `pip uninstall -y "
            "onnxruntime onnxruntime-gpu`, then `pip install 'ign-service[cpu]'`, or [gpu] "
            "for CUDA"
        )
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def stop_signals() -> list[signal.Signals]:
    """The signals that end the service: SIGHUP is one of them, unless the parent ignores it, as
    under nohup.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


def available_cpus(*, root: Path = Path("/")) -> int:
    """CPUs that this process may use: the affinity mask or the control group's quota, whichever is
    smaller; at least 1.

    onnxruntime counts the host's cores instead, and a container with a quota is then throttled.
    ``root`` is the directory that holds `proc` and `sys`.
    """
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.floor(min([available, *_limits(root, "cpu.max")])))


def memory_limit(*, root: Path = Path("/")) -> int:
    """Bytes that this process may use: the machine's, or the limit of its control group (v2) if
    that is less.

    0 where the system does not tell. ``root`` is as of `available_cpus`.
    """
    with suppress(OSError, ValueError):
        # the first line is `MemTotal: N kB`
        _, kib, *_ = (root / "proc/meminfo").read_text(encoding="ascii").split()
        return int(min([int(kib) << 10, *_limits(root, "memory.max")]))
    return 0


def _limits(root: Path, file: str) -> Iterator[float]:
    """The limits of this process's control group (v2) and its ancestors: a number each, or a number
    and its divisor.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    # The unified hierarchy has the line `0::/path`. In a container the path may be the host's, and
    # then only the top directory exists here.
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    for group in (group for path in paths for group in (Path("/", path), *Path("/", path).parents)):
        with suppress(OSError, ValueError, ZeroDivisionError):
            text = (root / "sys/fs/cgroup" / group.relative_to("/") / file).read_text()
            limit, *divisor = map(int, text.split())  # `max` for no limit: a ValueError
            yield limit / (divisor or [1])[0]


def installed_onnxruntimes() -> set[str]:
    """The names of the installed onnxruntime distributions."""
    return {
        name
        for name in ("onnxruntime", "onnxruntime-gpu")
        if any(metadata.Distribution.discover(name=name))
    }


def onnxruntime_version() -> str:
    """The version of the installed onnxruntime; empty if there is none."""
    return next((metadata.version(name) for name in sorted(installed_onnxruntimes())), "")


def share_metrics(file: Path) -> None:
    """Make the next process that this one starts keep its metrics in this file, beside those of the
    others.
    """
    os.environ[_METRICS_FILE] = str(file)


def metrics_file() -> Path | None:
    """The file of `share_metrics`, if the parent of this process has called it."""
    file = os.environ.get(_METRICS_FILE)
    return Path(file) if file else None


def lower_priority() -> None:
    """Let the threads of other models go before this one and those that it starts; elsewhere than
    on Linux, nothing.
    """
    with suppress(OSError, AttributeError):
        # 10 is a tenth of the CPU time of others that want it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def resident_bytes() -> int:
    """This process's memory without files; 0 where the system does not tell."""
    with suppress(OSError):
        _, resident, shared, *_ = map(
            int, Path("/proc/self/statm").read_text(encoding="ascii").split()
        )
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0
