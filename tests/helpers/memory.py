"""What this process holds of memory. Linux only."""

import ctypes
from pathlib import Path
from typing import Literal

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def mib(field: Literal["VmRSS", "VmHWM"]) -> float:
    """Resident memory now, or the most since `forget_peak`."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """The most resident memory is that of now."""
    _CLEAR.write_text("5", encoding="ascii")


def trim() -> None:
    """Give what malloc keeps for later back to the system, so that memory which is used again
    counts again.
    """
    ctypes.CDLL(None).malloc_trim(0)
