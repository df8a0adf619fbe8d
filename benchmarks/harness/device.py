"""The GPU of a result, as `nvidia-smi` describes it."""

import os
import subprocess

from benchmarks.harness.common import Json

_FIELDS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")


class Device:
    """The first visible device; without `nvidia-smi` all values are empty."""

    def about(self) -> Json:
        """Name, driver, memory in MiB, and limits."""
        values = self._query(",".join(_FIELDS))
        return dict(zip(_FIELDS, values, strict=True)) if len(values) == len(_FIELDS) else {}

    def used_mib(self) -> float | None:
        """Memory in use by all processes."""
        try:
            return float(self._query("memory.used")[0].split()[0])
        except (IndexError, ValueError):
            return None

    def _query(self, fields: str) -> list[str]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={visible or 0}"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return []
        return [part.strip() for part in output.splitlines()[0].split(",")] if output.strip() else []
