"""onnxruntime sessions: their options on each device, and what its errors mean.

On CUDA nothing falls back to the CPU silently, neither the whole model nor single nodes of it.

onnxruntime's errors share no class, so their text is all there is. It reports one and the same CUDA
error in two forms: calls of the CUDA runtime give its number (``CUDA failure 700: an illegal memory
access was encountered``), kernels give its name (``CUDA error cudaErrorIllegalAddress:an illegal
memory access was encountered``). cuBLAS and cuDNN have codes of their own, and give the same code
for a lost device and for an operation that they cannot run.
"""

import ctypes
import io
import logging
import os
import re
from contextlib import redirect_stdout
from typing import Any, Final, Literal, NamedTuple

import onnxruntime as ort

from service.domain.errors import StartupError

_LOG = logging.getLogger(__name__)
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
_HINT: Final = " (extra `gpu` has it)"

# file.cc:12 type function(arguments) [with template arguments], or file.cc:12 function
_SOURCE_LOCATION: Final = re.compile(
    r"\S+\.(?:cc|h|cu|cuh):\d+ (?:[^()\"\n]+\([^()\n]*\)(?: const)?(?: \[with [^\]\n]*\])?|\w+) ?"
)
Kind = Literal["out of memory", "lost", "device", "other"]

_OUT_OF_MEMORY: Final = re.compile(
    # onnxruntime's arena, with and without a limit; CUDA, cuBLAS and cuDNN 9; C++ on the CPU
    r"failed to allocate memory|available memory of \d+ is smaller|out of "
    r"memory|ALLOC_FAILED|ALLOCATION_FAILED|MemoryAllocation|bad_alloc|bad allocation",
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
"""CUDA errors after which every later call of the process fails (`cudaError_t` in the CUDA
runtime's reference): the device is gone or not usable, or its context is corrupt. Number → name
without `cudaError`.
"""
_LOST: Final = re.compile(
    rf"CUDA failure ({'|'.join(map(str, STICKY))})\b|cudaError({'|'.join(STICKY.values())})\b"
)
_DEVICE: Final = re.compile(
    r"\bcu(?:da|dnn|blas|blaslt|fft|rand) "
    r"(?:failure|error)\b|cudaError[A-Z]|CUDA_ERROR_|CU(?:BLAS|DNN)_STATUS_",
    re.IGNORECASE,
)


class CudaUnavailable(StartupError):
    """CUDA was tried and does not work here; the text says why, without paths."""


class CudaOptions(NamedTuple):
    """The operator's options for CUDA. They have no effect on the CPU."""

    device_id: int = 0  # among the visible GPUs
    half: bool = False  # the model computes in float16, so tensor cores must be allowed


def cuda_is_built_in() -> bool:
    """Whether this build of onnxruntime has the CUDA provider."""
    return CUDA in ort.get_available_providers()


def cuda_is_usable() -> bool:
    """Whether this build of onnxruntime has the CUDA provider, and a GPU is visible."""
    return cuda_is_built_in() and gpu_is_visible()


def cpu_session(data: bytes, threads: int) -> Any:
    """A session on the CPU, which keeps the memory of its largest run; raises StartupError if
    ``data`` is not a model that it can load.
    """
    # onnxruntime's arena is on: to get the memory of a large batch from the system in every run
    # costs up to a third of f, that of a tile as much as f. Patterns are kept per batch size.
    options = _session_options(threads)
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(data, options, providers=[CPU], enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no other base class
        raise StartupError(f"not a model onnxruntime can load: {short_message(exc)}") from exc


def cuda_session(data: bytes, cuda: CudaOptions) -> Any:
    """A session on a CUDA device that runs every node; raises `CudaUnavailable` without one."""
    if not cuda_is_built_in():
        raise CudaUnavailable(f"CUDA cannot be used: this onnxruntime is built without it{_HINT}")
    if not gpu_is_visible():
        raise CudaUnavailable(
            "CUDA cannot be used: its provider did not load; is NVIDIA's driver there?"
        )
    providers = [(CUDA, cuda_options(cuda))]
    library_error = _preload_libraries()
    options = _session_options(threads=1)  # the device does the work; more CPU threads do not help
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # onnxruntime warns for every session that CUDA is not a plugin
    ort.set_default_logger_severity(3)
    try:
        session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no other base class
        _LOG.warning("CUDA session failed: %s", exc)
        reason = short_message(exc)
        # onnxruntime says then that nodes are left to the CPU: all of them.
        if library_error:
            reason = f"its provider did not load: {library_error}"
        raise CudaUnavailable(f"CUDA cannot be used: {reason}") from exc
    try:  # without cuDNN a session starts, and its first run fails
        ctypes.CDLL("libcudnn.so.9")
    except OSError as exc:
        _LOG.warning("loading cuDNN: %s", exc)
        raise CudaUnavailable(f"CUDA cannot be used: cuDNN 9 does not load{_HINT}") from exc
    return session


def cuda_options(cuda: CudaOptions) -> dict[str, str]:
    """Options of the CUDA provider for a convolutional network that runs only at its bucket
    sizes.
    """
    return {
        "device_id": str(cuda.device_id),
        # With cuDNN 9 both searches are heuristics that time nothing; EXHAUSTIVE is the slower and
        # better one.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",  # the shapes are few
        # TF32 is off because it costs three decimal digits. With float16 it stays on, because
        # onnxruntime switches it off by forbidding all tensor cores;
        # `service.environment.prepare_process` covers float32 there.
        "use_tf32": "1" if cuda.half else "0",
    }


def short_message(exc: Exception) -> str:
    """The first line of an onnxruntime message, without error number, source locations, paths and
    host names.
    """
    text = re.sub(r" ; GPU=.*", "", str(exc))
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return _truncate(_SOURCE_LOCATION.sub("", text)) or type(exc).__name__


def _truncate(text: str) -> str:
    return "".join(re.sub(r"\S*/\S*", "…", text).strip().splitlines()[:1])[:200]


def _preload_libraries() -> str:
    printed = io.StringIO()
    # preload_dlls prints failures instead of raising them
    with redirect_stdout(printed):
        ort.preload_dlls()
    message = printed.getvalue().strip()
    if message:
        _LOG.warning("loading CUDA libraries: %s", message)
    return _truncate(message)


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise a file that begins like one of the format ORT is read as such, and escapes
    # `check_self_contained`.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights in separate files would not be covered by the digest. This folder cannot contain any.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    return options


def kind_of(exc: Exception) -> Kind:
    """``lost``: every later call fails. ``out of memory``: a smaller batch may fit. ``other``: not
    about the device.

    ``device``: another error of CUDA or its libraries, about these rows or about the device; only a
    further run can tell which.
    """
    text = str(exc)
    if _LOST.search(text):
        return "lost"
    if isinstance(exc, MemoryError) or _OUT_OF_MEMORY.search(text):
        return "out of memory"
    return "device" if _DEVICE.search(text) else "other"


def gpu_is_visible() -> bool:
    """Whether the driver has a GPU for this process."""
    # By ctypes: `nvidia-smi` ignores `CUDA_VISIBLE_DEVICES`, and torch is not there.
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return not failed and count.value > 0
