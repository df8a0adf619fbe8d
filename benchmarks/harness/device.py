"""The GPU of a result, as `nvidia-smi` describes it."""

import os
import subprocess
from typing import Final

from benchmarks.harness.common import Json

_FIELDS: Final = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "memory.used")


def gpu() -> Json:
    """Name, driver, limits and the memory in use of the first visible device; empty without `nvidia-smi`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader", f"--id={visible or 0}"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_FIELDS, (part.strip() for part in output.partition("\n")[0].split(",")), strict=True))
