"""How CUDA fails: what kind of failure an error of onnxruntime is, and whether it holds code for a GPU.

onnxruntime's errors share no class, so their text is all there is. It reports one and the same CUDA error in two forms:
calls of the CUDA runtime give its number (``CUDA failure 700: an illegal memory access was encountered``), kernels give
its name (``CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered``). cuBLAS and cuDNN have codes
of their own, and give the same code for a lost device and for an operation that they cannot run.

The compute capability is read from the driver by ctypes: `nvidia-smi` ignores `CUDA_VISIBLE_DEVICES`, and torch is not
there.
"""

import ctypes
import re
import sys
from typing import Final, Literal

Kind = Literal["out of memory", "lost", "device", "other"]

Capability = tuple[int, int]


_OUT_OF_MEMORY: Final = re.compile(
    # onnxruntime's arena, with and without a limit; CUDA, cuBLAS and cuDNN 9; C++ on the CPU
    r"failed to allocate memory|available memory of \d+ is smaller|out of memory|ALLOC_FAILED|ALLOCATION_FAILED"
    r"|MemoryAllocation|bad_alloc|bad allocation",
    re.IGNORECASE,
)
STICKY: Final = {
    46: "DevicesUnavailable",
    100: "NoDevice",
    101: "InvalidDevice",
    214: "ECCUncorrectable",
    220: "NvlinkUncorrectable",
    226: "Contained",
    700: "IllegalAddress",
    702: "LaunchTimeout",
    709: "ContextIsDestroyed",
    710: "Assert",
    714: "HardwareStackError",
    715: "IllegalInstruction",
    716: "MisalignedAddress",
    717: "InvalidAddressSpace",
    718: "InvalidPc",
    719: "LaunchFailure",
    721: "TensorMemoryLeak",
    999: "Unknown",
}
"""CUDA errors after which every later call of the process fails (`cudaError_t` in the CUDA runtime's reference): the
device is gone or not usable, or its context is corrupt. Number → name without `cudaError`."""
_LOST: Final = re.compile(rf"CUDA failure ({'|'.join(map(str, STICKY))})\b|cudaError({'|'.join(STICKY.values())})\b")
_DEVICE: Final = re.compile(
    r"\bcu(?:da|dnn|blas|blaslt|fft|rand) (?:failure|error)\b|cudaError[A-Z]|CUDA_ERROR_|CU(?:BLAS|DNN)_STATUS_",
    re.IGNORECASE,
)
_NO_CODE: Final = re.compile(
    r"NoKernelImage|no kernel image|UnsupportedPtx|unsupported toolchain|InvalidDeviceFunction|invalid device function"
)

HOLDS_CODE_FOR: Final[tuple[Capability, ...]] = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
"""What the wheel of onnxruntime-gpu 1.31 on PyPI was built for, counted in its fat binaries. It holds no PTX, which the
driver could compile for other GPUs."""
_LIBRARY: Final = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def kind_of(exc: Exception) -> Kind:
    """``lost``: every later call fails. ``out of memory``: a smaller batch may fit. ``other``: not about the device.

    ``device``: another error of CUDA or its libraries, about these rows or about the device; only a further run can
    tell which.
    """
    text = str(exc)
    if _LOST.search(text):
        return "lost"
    if isinstance(exc, MemoryError) or _OUT_OF_MEMORY.search(text):
        return "out of memory"
    return "device" if _DEVICE.search(text) else "other"


def lacks_code(exc: Exception) -> bool:
    """Whether the error says that the library holds no machine code for this GPU."""
    return _NO_CODE.search(str(exc)) is not None


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
