"""What kind of failure an error of onnxruntime is. Its errors share no class, so their text is all there is.

onnxruntime reports one and the same CUDA error in two forms: calls of the CUDA runtime give its number
(``CUDA failure 700: an illegal memory access was encountered``), kernels give its name
(``CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered``). cuBLAS and cuDNN have codes of their
own, and give the same code for a lost device and for an operation that they cannot run.
"""

import re
from typing import Final, Literal

Kind = Literal["out of memory", "lost", "device", "other"]

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


def kind_of(exc: Exception) -> Kind:
    """The kind of a failure.

    Returns:
        ``lost``: every later call fails. ``out of memory``: a smaller batch may fit. ``device``: another error of CUDA
        or its libraries, which may be about these rows or about the device; only a further run can tell. ``other``:
        not about the device.
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
