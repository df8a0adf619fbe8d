"""The GPU of a result, as `nvidia-smi` describes it."""

import os
import shutil
import subprocess

from benchmarks.harness.common import Json

_FIELDS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")


class Device:
    """The first visible device; without `nvidia-smi` all answers are empty."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi")

    def about(self) -> Json:
        """Name, driver, memory in MiB, and limits."""
        told = self._ask(",".join(_FIELDS))
        return dict(zip(_FIELDS, told, strict=True)) if len(told) == len(_FIELDS) else {}

    def used_mib(self) -> float | None:
        """Memory in use by all processes."""
        told = self._ask("memory.used")
        try:
            return float(told[0].split()[0])
        except (IndexError, ValueError):
            return None

    def _ask(self, fields: str) -> list[str]:
        if self._program is None:
            return []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
        command = [self._program, f"--query-gpu={fields}", "--format=csv,noheader", f"--id={visible or 0}"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return []
        return [part.strip() for part in said.splitlines()[0].split(",")] if said.strip() else []
