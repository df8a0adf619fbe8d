"""onnxruntime sessions: what is asked of them on each device, and what is said when they do not start.

On CUDA nothing may fall back to the CPU in silence: neither the whole model, nor single nodes of it.
"""

import contextlib
import ctypes
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from service.domain.errors import StartupError

ImageShape = tuple[int, int, int]

_LOG = logging.getLogger(__name__)
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
_HINT: Final = " (extra `gpu` has it)"

_NO_CPU: Final = "session.disable_cpu_ep_fallback"
_ON_CPU: Final = "fallback to CPU EP has been explicitly disabled"
# file.cc:12 type function(arguments) [with template arguments], or file.cc:12 function
_PLACE: Final = re.compile(
    r"\S+\.(?:cc|h|cu|cuh):\d+ (?:[^()\"\n]+\([^()\n]*\)(?: const)?(?: \[with [^\]\n]*\])?|\w+) ?"
)
_TOO_NEW: Final = (
    re.compile(r"(?P<what>Opset) (?P<needs>\d+) is under development.* is till opset (?P<most>\d+)", re.DOTALL),
    re.compile(r"Unsupported model (?P<what>IR) version: (?P<needs>\d+), max supported IR version: (?P<most>\d+)"),
)


class CudaUnavailable(StartupError):
    """CUDA was tried and does not work here; the text says why, without paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """What the operator decided for CUDA; nothing of it matters on the CPU.

    Args:
        device_id: which of the visible devices, from 0.
        deterministic: one batch size, and cuDNN's simpler heuristic.
        graphs: capture one CUDA graph for each batch size, and replay it.
        memory_mib: bound on the arena of a session; cuDNN's and TensorRT's own memory is beyond it. 0 for no bound.
        tensorrt_cache: folder for TensorRT's engines; None leaves TensorRT out.
        half: the model computes in float16, which TensorRT wants to be told, and which wants tensor cores.
    """

    device_id: int = 0
    deterministic: bool = False
    graphs: bool = False
    memory_mib: int = 0
    tensorrt_cache: Path | None = None
    half: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The shapes that TensorRT builds an engine for, and the model that it is for.

    Args:
        digest: of the model file.
        shape: (C, H, W) of one row.
        buckets: batch sizes, ascending.
    """

    digest: str
    shape: ImageShape
    buckets: Sequence[int]


def cpu_session(data: bytes, threads: int) -> Any:
    """A session on the CPU.

    Raises:
        StartupError: this is no model, or one that needs a newer onnxruntime.
    """
    options = _session_options(threads)
    # Neither arena nor patterns: both keep one set of buffers per batch size, and cost as much as they save.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return _start_on_cpu(data, options)


def metadata(data: bytes) -> dict[str, str]:
    """The metadata of a model file, for those who need it before they can start a session that runs it.

    Raises:
        StartupError: as :func:`cpu_session`.
    """
    options = _session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: dict[str, str] = _start_on_cpu(data, options).get_modelmeta().custom_metadata_map
    return found


def cuda_session(data: bytes, cuda: CudaOptions, profile: Profile | None = None) -> Any:
    """A session on a CUDA device, every node of it.

    Args:
        data: the model file.
        cuda: see there.
        profile: what TensorRT has to know; wanted where ``cuda`` has a cache for it.

    Raises:
        CudaUnavailable: there is no CUDA or TensorRT, it does not load, or it does not take every node.
        StartupError: the file needs a newer onnxruntime, or TensorRT's cache cannot be written.
    """
    wanted = [CUDA] if cuda.tensorrt_cache is None else [TENSORRT, CUDA]
    if missing := [name for name in wanted if name not in ort.get_available_providers()]:
        raise CudaUnavailable(f"{_plain(missing[0])} cannot be used: this onnxruntime is built without it{_HINT}")
    providers = [(CUDA, cuda_options(cuda))]
    if cuda.tensorrt_cache is not None:
        if profile is None:
            raise ValueError("TensorRT needs a profile")
        providers.insert(0, (TENSORRT, tensorrt_options(cuda, cuda.tensorrt_cache, profile)))
    missed = _preload_libraries()
    options = _session_options(threads=1)  # more do not help: the device does the work
    options.use_deterministic_compute = cuda.deterministic
    options.add_session_config_entry(_NO_CPU, "1")
    ort.set_default_logger_severity(3)  # for every session it warns that CUDA is no plugin
    try:
        session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no other base class
        if reason := _too_new(exc):  # for the CPU as well
            raise StartupError(reason) from exc
        _LOG.warning("%s session failed: %s", _plain(wanted[0]), exc)
        if _ON_CPU in str(exc):
            # What it says of single nodes, it says too when a provider did not load and all of them are left over.
            options.add_session_config_entry(_NO_CPU, "0")
            _check_loaded(ort.InferenceSession(data, options, providers=providers, enable_fallback=0), wanted, missed)
        raise CudaUnavailable(f"{_plain(wanted[0])} cannot be used: {one_line(exc)}") from exc
    _check_loaded(session, wanted, missed)
    if reason := _no_cudnn():
        raise CudaUnavailable(f"CUDA cannot be used: {reason}")
    return session


def cuda_options(cuda: CudaOptions) -> dict[str, str]:
    """Options of the CUDA provider, for a convolutional network that only ever sees its buckets.

    For cuDNN 9 both searches are heuristics, EXHAUSTIVE the slower and better one, and no convolution is timed. TF32
    is off: it costs three decimal digits. In half precision it stays on, because onnxruntime turns it off by
    forbidding tensor cores, those for float16 too; :func:`service.environment.keep_precision` says what goes for float32.
    The arena grows by what is asked for, since the shapes are few.
    """
    options = {
        "device_id": str(cuda.device_id),
        "cudnn_conv_algo_search": "HEURISTIC" if cuda.deterministic else "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "1" if cuda.half else "0",
    }
    if cuda.memory_mib:
        options["gpu_mem_limit"] = str(cuda.memory_mib * 2**20)
    if cuda.graphs:
        options["enable_cuda_graph"] = "1"
    return options


def tensorrt_options(cuda: CudaOptions, cache: Path, profile: Profile) -> dict[str, str]:
    """Options of the TensorRT provider: one engine for all buckets, kept on disk.

    An engine is good for one model, onnxruntime, TensorRT and kind of device. The folder names the first two;
    the provider puts the others into its file names. Its switches are True and False; 1 and 0 are refused.

    Raises:
        StartupError: the folder cannot be written.
    """
    folder = cache / f"{profile.digest[:16]}-ort{ort.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StartupError(f"IGN_TENSORRT_CACHE={cache}: {exc.strerror or type(exc).__name__}") from exc
    if not os.access(folder, os.W_OK):
        raise StartupError(f"IGN_TENSORRT_CACHE={cache}: cannot be written")
    least, most = profile.buckets[0], profile.buckets[-1]
    row = "x".join(map(str, profile.shape))
    return {
        "device_id": str(cuda.device_id),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": f"x:{least}x{row}",
        "trt_profile_opt_shapes": f"x:{most}x{row}",
        "trt_profile_max_shapes": f"x:{most}x{row}",
        "trt_fp16_enable": str(cuda.half),
    }


def one_line(exc: Exception) -> str:
    """The first line of an onnxruntime message, without its error number, places in its source, paths and hosts."""
    text = re.sub(r" ; GPU=.*", "", str(exc))
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return _shortened(_PLACE.sub("", text)) or type(exc).__name__


def _shortened(text: str) -> str:
    return "".join(re.sub(r"\S*/\S*", "…", text).strip().splitlines()[:1])[:200]


def _start_on_cpu(data: bytes, options: Any) -> Any:
    try:
        return ort.InferenceSession(data, options, providers=[CPU], enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no other base class
        raise StartupError(_too_new(exc) or f"not a model onnxruntime can load: {one_line(exc)}") from exc


def _check_loaded(session: Any, wanted: Sequence[str], missed: str) -> None:
    """Refuse a session without a provider that was asked for: onnxruntime leaves those out in silence."""
    started = session.get_providers()
    if lost := [name for name in wanted if name not in started]:
        reason = f": {missed}" if missed else "; is NVIDIA's driver there?"
        raise CudaUnavailable(f"{_plain(lost[0])} cannot be used: its provider did not load{reason}")


def _plain(provider: str) -> str:
    return {CUDA: "CUDA", TENSORRT: "TensorRT"}[provider]


def _preload_libraries() -> str:
    """Load NVIDIA's libraries; returns the first thing that went wrong, or nothing."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it prints what fails, and does not raise
        ort.preload_dlls()
    said = printed.getvalue().strip()
    if said:
        _LOG.warning("loading CUDA libraries: %s", said)
    return _shortened(said)


def _no_cudnn() -> str:
    """Why there is no cuDNN, or nothing: without it onnxruntime starts all the same, and fails in its first run."""
    try:
        ctypes.CDLL({"win32": "cudnn64_9.dll"}.get(sys.platform, "libcudnn.so.9"))
    except OSError as exc:
        _LOG.warning("loading cuDNN: %s", exc)
        return f"cuDNN 9 does not load{_HINT}"
    return ""


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in further files would escape the digest; under this folder there can be none.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def _too_new(exc: Exception) -> str | None:
    """What to do when the file is of a later ONNX than this onnxruntime knows, where that is what it says."""
    for pattern in _TOO_NEW:
        if found := pattern.search(str(exc)):
            what = found["what"].replace("IR", "IR version").replace("Opset", "opset")
            return (
                f"needs ONNX {what} {found['needs']}, and onnxruntime {ort.__version__} supports up to "
                f"{found['most']}: install a newer onnxruntime, or export the model for {what} {found['most']}"
            )
    return None
