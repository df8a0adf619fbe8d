"""The GPU of a result, as `nvidia-smi` describes it."""

import os
import subprocess
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
    """The first visible device and its driver; empty without `nvidia-smi`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    query = [f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader", f"--id={visible or 0}"]
    try:
        done = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    fields = (part.strip() for part in done.stdout.partition("\n")[0].split(","))
    return dict(zip(_FIELDS, fields, strict=True))
