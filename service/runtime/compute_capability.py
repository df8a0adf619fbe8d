"""The compute capability of a GPU, compared with the machine code that onnxruntime holds.

The driver is asked by ctypes: `nvidia-smi` ignores `CUDA_VISIBLE_DEVICES`, and torch is not there. Not yet measured on
a GPU.
"""

import ctypes
import sys
from typing import Final

Capability = tuple[int, int]

HOLDS_CODE_FOR: Final[tuple[Capability, ...]] = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
"""What the wheel of onnxruntime-gpu 1.31 on PyPI was built for, counted in its fat binaries. It holds no PTX, which the
driver could compile for other GPUs."""
_LIBRARY: Final = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def missing_code(device_id: int) -> str:
    """Why onnxruntime from PyPI cannot run on a GPU: one line, or an empty string if it can or nothing is known."""
    capability = compute_capability(device_id)
    if capability is None or can_run(capability):
        return ""
    known = ", ".join(f"{major}.{minor}" for major, minor in HOLDS_CODE_FOR)
    return (
        f"GPU {device_id} has compute capability {capability[0]}.{capability[1]}, "
        f"and onnxruntime-gpu from PyPI holds code for {known} only"
    )


def can_run(capability: Capability) -> bool:
    """Whether code for one of `HOLDS_CODE_FOR` runs there: that of the same major version, and no later minor one."""
    return any(major == capability[0] and minor <= capability[1] for major, minor in HOLDS_CODE_FOR)


def compute_capability(device_id: int) -> Capability | None:
    """The compute capability of a visible GPU, major and minor version; None if the driver does not tell."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), device_id)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    return None if failed else (major.value, minor.value)
