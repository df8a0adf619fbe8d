"""The GPU of a result, as `nvidia-smi` describes it, and CUDA's libraries."""

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.harness.common import Json

_FIELDS: Final = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "clocks.max.sm",
    "memory.used",
)


def gpu() -> Json:
    """The first visible device, its driver and the libraries in use; empty without `nvidia-smi`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(_FIELDS)}",
        "--format=csv,noheader",
        f"--id={visible or 0}",
    ]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    fields = (part.strip() for part in output.partition("\n")[0].split(","))
    return dict(zip(_FIELDS, fields, strict=True)) | libraries(
        Path("/proc/self/maps").read_text(encoding="utf-8")
    )


def libraries(maps: str) -> dict[str, str]:
    """The versions of cuBLAS and cuDNN, if this process has loaded them, by its memory map."""
    versions = {}
    for path, name in set(re.findall(r"(/\S*/lib(cublas|cudnn)\.so\S*)", maps)):
        number = ctypes.c_int()
        get = ctypes.CDLL(path)[f"{name}GetProperty"]
        # major, minor, patch level
        parts = (get(part, ctypes.byref(number)) or number.value for part in range(3))
        versions[name] = ".".join(map(str, parts))
    return versions
