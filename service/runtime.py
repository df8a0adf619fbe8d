"""One exported network f on one device, through onnxruntime.

On the CPU the rows run exactly as they come: there a row's bits are the same at every batch size, and padding is
pure loss. On CUDA they run padded to the model's buckets, through device buffers that never move: a shape not seen
before would search cuDNN's algorithms and grow the arena while callers wait.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort

from service.card import INPUT, OUTPUT, CardError, from_metadata
from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.tasks import DeviceOutOfMemory

Shape = tuple[int, int, int]
Runner = Callable[[FloatRows, FloatRows], None]  # rows, out: equally many

_LOG = logging.getLogger(__name__)
_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
_SHORTAGE: Final = re.compile(
    r"out of memory|bad_alloc|bad allocation|failed to allocate memory|ALLOC_FAILED|MemoryAllocation",
    re.IGNORECASE,
)


_TOO_NEW: Final = (
    re.compile(r"(?P<what>Opset) (?P<needs>\d+) is under development.* is till opset (?P<most>\d+)", re.DOTALL),
    re.compile(r"Unsupported model (?P<what>IR) version: (?P<needs>\d+), max supported IR version: (?P<most>\d+)"),
)


class CudaUnavailable(StartupError):
    """CUDA was tried and does not work here; the text says why, without paths."""


class OnnxModel:
    """f: (N, C, H, W) → (N, C, H, W), float32, in the model's value range; the file itself holds the card.

    One thread at a time may call :meth:`run` and :meth:`shed`: on CUDA there is one set of buffers.

    Args:
        data: the ONNX file's bytes; `digest` is their SHA-256 in hexadecimal. Weights outside them are refused.
        device: `auto` takes CUDA where it works, and says in `fallback_reason` why it did not.
        deterministic: on CUDA, one bucket, and cuDNN's heuristic instead of its search.
        threads: CPU threads within an operator, ≥ 1; see :func:`cpu_threads`.
        max_batch_rows: bound on the buckets.

    Raises:
        StartupError: not a model this service can run, or `cuda` was asked for and does not load.
    """

    def __init__(
        self,
        data: bytes,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        deterministic: bool = False,
        threads: int = 1,
        max_batch_rows: int = 64,
    ) -> None:
        self._data = data
        self._deterministic = deterministic
        self._threads = threads
        self.digest = hashlib.sha256(data).hexdigest()
        self.device: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
        self.fallback_reason: str | None = None
        try:
            session = self._session()
        except CudaUnavailable as exc:
            if device == "cuda":
                raise
            self.device, self.fallback_reason = "cpu", exc.detail
            session = self._session()
        self.provider: str = session.get_providers()[0]
        try:
            self.card, self.noise = from_metadata(session.get_modelmeta().custom_metadata_map)
        except CardError as exc:
            raise StartupError(str(exc)) from exc
        self.shape: Shape = self.card.shape
        _check_signature(session, self.shape)
        self.buckets: tuple[int, ...] | None = None
        if self.device == "cuda":
            self.buckets = bounded_buckets(self.card.buckets, max_batch_rows, single=deterministic)
        self._runner: Runner | None = self._runner_for(session)

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        """One step of f: (N, C, H, W) → the same length and order, in ``out`` if given (it may be ``rows``).

        Raises:
            ValueError: rows or ``out`` are not float32 of the model's shape, or not equally many.
            DeviceOutOfMemory: the device could not hold the batch.
            ModelFailure: onnxruntime raised anything else, or the model is closed.
        """
        if rows.ndim != 4 or rows.shape[1:] != self.shape or rows.dtype != np.float32 or not len(rows):
            raise ValueError(f"rows must be float32 (N, *{self.shape}), not {rows.dtype} {rows.shape}")
        target = np.empty(rows.shape, dtype=np.float32) if out is None else out
        if target.shape != rows.shape or target.dtype != np.float32:
            raise ValueError(f"out must be float32 {rows.shape}, not {target.dtype} {target.shape}")
        if self._runner is None:
            raise ModelFailure("the model is closed")
        try:
            self._runner(rows, target)
        except Exception as exc:  # onnxruntime's errors share no other base class
            if not _is_shortage(exc):
                raise ModelFailure("the model failed on these rows") from exc
            shortage = _one_line(exc)
        else:
            return target
        # Not chained: the original's traceback would keep the session and its buffers alive while shed() runs.
        raise DeviceOutOfMemory(f"{len(rows)} rows do not fit: {shortage}")

    def warm_up(self) -> None:
        """Run every bucket twice, so that no caller waits for algorithm search or first allocations.

        Buckets that do not fit the device's memory are given up.

        Raises:
            DeviceOutOfMemory: not even the smallest batch fits.
            ModelFailure: the model does not run.
        """
        while True:
            try:
                for size in self.buckets or (1,):
                    rows = np.zeros((size, *self.shape), dtype=np.float32)
                    self.run(self.run(rows))
            except DeviceOutOfMemory:
                if self.buckets in (None, (1,)):
                    raise
                self._restart()
            else:
                return

    def shed(self) -> None:
        """After an out-of-memory failure: give up the top bucket (halve a single one), with a new session.

        A new session, because onnxruntime's arena may fail every later run after one failed allocation.

        Raises:
            DeviceOutOfMemory: not even the smallest batch fits.
            StartupError: no session starts any more.
        """
        self._restart()
        self.warm_up()

    def close(self) -> None:
        """Free the session and its memory; a later :meth:`run` raises."""
        self._runner = None

    def _restart(self) -> None:
        if self.buckets is not None:
            self.buckets = self.buckets[:-1] or (max(1, self.buckets[-1] // 2),)
        self._runner = None  # first, because there is no room for both
        self._runner = self._runner_for(self._session())

    def _session(self) -> Any:
        if self.device == "cuda":
            return _cuda_session(self._data, deterministic=self._deterministic)
        options = _session_options(self._threads)
        # Neither arena nor patterns: both keep one set of buffers per batch size, and cost as much as they save.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        try:
            return ort.InferenceSession(self._data, options, providers=[_CPU], enable_fallback=0)
        except Exception as exc:  # onnxruntime's errors share no other base class
            raise StartupError(_too_new(exc) or f"not a model onnxruntime can load: {_one_line(exc)}") from exc

    def _runner_for(self, session: Any) -> Runner:
        if self.buckets is None:
            return ExactRunner(session)
        return BucketRunner(session, self.shape, self.buckets, "cuda")


class ExactRunner:
    """Run as many rows as come. Plain `run` and a copy: binding the output costs 3 µs more than it saves."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) into ``out``, equally long."""
        result = self._session.run([OUTPUT], {INPUT: rows})[0]
        if result.shape != out.shape:  # would broadcast, and answer one caller with another's row
            raise ValueError(f"the model gave {result.shape} for {rows.shape}")
        out[...] = result


class BucketRunner:
    """Run rows padded with zeros to the smallest bucket that holds them, in buffers that stay where they are.

    More rows than the top bucket run one piece after another. Buffers are made when a bucket is first used.

    Args:
        session: an onnxruntime session on ``device``.
        shape: (C, H, W) of one row.
        buckets: batch sizes, ascending.
        device: onnxruntime's name of the device whose memory holds the buffers.
    """

    def __init__(self, session: Any, shape: Shape, buckets: Sequence[int], device: str) -> None:
        self._session = session
        self._shape = shape
        self._buckets = tuple(buckets)
        self._device = device
        self._lanes: dict[int, _Lane] = {}

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) into ``out``, equally long."""
        top = self._buckets[-1]
        for start in range(0, len(rows), top):
            piece = rows[start : start + top]
            size = next(bucket for bucket in self._buckets if bucket >= len(piece))
            if size not in self._lanes:
                self._lanes[size] = _Lane(self._session, (size, *self._shape), self._device)
            self._lanes[size].run(self._session, piece, out[start : start + top])


class _Lane:
    """One bucket: a host array to pad in, input and output on the device, and the binding of the two."""

    def __init__(self, session: Any, shape: tuple[int, int, int, int], device: str) -> None:
        self._host = np.zeros(shape, dtype=np.float32)
        self._x = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        self._y = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._x)
        self._binding.bind_ortvalue_output(OUTPUT, self._y)

    def run(self, session: Any, rows: FloatRows, out: FloatRows) -> None:
        self._host[: len(rows)] = rows
        self._host[len(rows) :] = 0.0
        self._x.update_inplace(self._host)
        session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        out[...] = self._y.numpy()[: len(rows)]


def cuda_options(*, deterministic: bool) -> dict[str, str]:
    """CUDA provider options for a convolutional network that only ever sees its buckets.

    EXHAUSTIVE finds the fastest convolutions and is paid for at warm-up; its choice can differ from run to run,
    which HEURISTIC's does not. TF32 is off: it costs three decimal digits. The arena grows by what is asked for,
    since the shapes are few.
    """
    return {
        "device_id": "0",
        "cudnn_conv_algo_search": "HEURISTIC" if deterministic else "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }


def bounded_buckets(buckets: Sequence[int], limit: int, *, single: bool) -> tuple[int, ...]:
    """The ascending ``buckets`` up to ``limit`` rows, or ``limit`` itself when none is; the largest if ``single``."""
    kept = tuple(size for size in buckets if size <= limit) or (limit,)
    return kept[-1:] if single else kept


def _cuda_session(data: bytes, *, deterministic: bool) -> Any:
    if _CUDA not in ort.get_available_providers():
        raise CudaUnavailable("CUDA cannot be used: this onnxruntime is built without it (extra `gpu` has it)")
    _preload_libraries()
    options = _session_options(threads=1)  # more do not help: the device does the work
    options.use_deterministic_compute = deterministic
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(_CUDA, cuda_options(deterministic=deterministic))]
    try:
        session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no other base class
        if reason := _too_new(exc):  # for the CPU as well
            raise StartupError(reason) from exc
        _LOG.warning("CUDA session failed: %s", exc)
        raise CudaUnavailable(f"CUDA cannot be used: {_one_line(exc)}") from exc
    if session.get_providers()[0] != _CUDA:  # onnxruntime falls back in silence
        raise CudaUnavailable("CUDA cannot be used: its provider did not load")
    return session


def _preload_libraries() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it prints what fails, and does not raise
        ort.preload_dlls()
    if printed.getvalue():
        _LOG.warning("loading CUDA libraries: %s", printed.getvalue().strip())


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


def _check_signature(session: Any, shape: Shape) -> None:
    for kind, name, values in (
        ("input", INPUT, session.get_inputs()),
        ("output", OUTPUT, session.get_outputs()),
    ):
        if [value.name for value in values] != [name]:
            raise StartupError(f"the model needs exactly one {kind}, named {name}")
        batch, *rest = values[0].shape or (None,)
        if values[0].type != "tensor(float)" or isinstance(batch, int) or tuple(rest) != shape:
            expected = "×".join(map(str, shape))
            raise StartupError(f"{kind} {name} is not float32 (any batch)×{expected}, as the card says")


def _is_shortage(exc: Exception) -> bool:
    return isinstance(exc, MemoryError) or _SHORTAGE.search(str(exc)) is not None


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


def _one_line(exc: Exception) -> str:
    """The first line of an onnxruntime message, without its error number and paths."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(exc))
    text = re.sub(r"\S*/\S*", "…", text).strip() or type(exc).__name__
    return text.splitlines()[0][:200]
