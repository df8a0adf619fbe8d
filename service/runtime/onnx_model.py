"""One exported network f on one device, through onnxruntime.

On the CPU the rows run exactly as they come: there a row's bits are the same at every batch size, and padding is
pure loss. On CUDA they run padded to the model's buckets, through device buffers that never move: a shape not seen
before would search cuDNN's algorithms and grow the arena while callers wait. There, rows can also stay on the device
from one step to the next.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, Literal, cast

import numpy as np

from service.artifact.card import INPUT, OUTPUT, CardError, ModelCard, from_metadata
from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows, NoiseSource
from service.domain.model import DeviceBatch, DeviceLost, DeviceOutOfMemory, once
from service.runtime.cuda_graphs import CAPTURES
from service.runtime.runners import DirectRunner, PaddedRunner, ResidentRunner, Runner, SingleThreadRunner
from service.runtime.session import CudaOptions, CudaUnavailable, cpu_session, cuda_session, short_message

ImageShape = tuple[int, int, int]

_SHORTAGE: Final = re.compile(
    # onnxruntime's arena, with and without a bound; CUDA, cuBLAS and cuDNN 9; the C++ of the CPU
    r"failed to allocate memory|available memory of \d+ is smaller|out of memory|ALLOC_FAILED|ALLOCATION_FAILED"
    r"|MemoryAllocation|bad_alloc|bad allocation",
    re.IGNORECASE,
)
_LOST: Final = re.compile(
    # Errors that CUDA repeats for every later call: illegal accesses, faults of kernels, uncorrectable memory errors,
    # a destroyed context, a device that is gone or that nobody may use.
    r"CUDA failure (46|100|101|214|226|70[029]|71\d|999)\b"
)


class OnnxModel:
    """f: (N, C, H, W) → (N, C, H, W), float32, in the model's value range; the file itself holds the card.

    One thread at a time may call :meth:`run`, the methods of `resident`, and :meth:`reduce_max_batch`: on CUDA there is one set
    of buffers.

    Args:
        data: the ONNX file's bytes; `digest` is their SHA-256 in hexadecimal. Weights outside them are refused.
        device: `auto` takes CUDA where it works, and says in `fallback_reason` why it did not.
        cuda: how, if it is CUDA.
        threads: CPU threads within an operator, ≥ 1; see :func:`service.environment.cpu_threads`.
        max_batch_rows: bound on the buckets.

    Raises:
        StartupError: not a model this service can run, or `cuda` was asked for and does not load.
    """

    def __init__(
        self,
        data: bytes,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        cuda: CudaOptions | None = None,
        threads: int = 1,
        max_batch_rows: int = 64,
    ) -> None:
        self._data = data
        self._cuda = cuda or CudaOptions()
        self._threads = threads
        self.digest = hashlib.sha256(data).hexdigest()
        self.device: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
        self.fallback_reason: str | None = None
        self.buckets: tuple[int, ...] | None = None
        try:
            session = self._session()
        except CudaUnavailable as exc:
            if device == "cuda":
                raise
            self.device, self.fallback_reason = "cpu", exc.detail
            session = self._session()
        self.provider: str = session.get_providers()[0]
        self.card, self.noise = _described(session.get_modelmeta().custom_metadata_map)
        self.shape: ImageShape = self.card.shape
        if self.device == "cuda":
            self.buckets = bounded_buckets(self.card.buckets, max_batch_rows, single=self._cuda.deterministic)
        _check_signature(session, self.shape)
        self._runner: Runner | None = self._runner_for(session)

    @property
    def resident(self) -> DeviceBatch | None:
        """Where rows can stay on the device between steps, what keeps them there."""
        return self if self.buckets is not None else None

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        """One step of f: (N, C, H, W) → the same length and order, in ``out`` if given (it may be ``rows``).

        Raises:
            ValueError: rows or ``out`` are not float32 of the model's shape, or not equally many.
            DeviceOutOfMemory: the device could not hold the batch.
            DeviceLost: CUDA will fail every call until another process has the device.
            ModelFailure: onnxruntime raised anything else, or the model is closed.
        """
        self._check_rows(rows)
        target = np.empty(rows.shape, dtype=np.float32) if out is None else out
        if target.shape != rows.shape or target.dtype != np.float32:
            raise ValueError(f"out must be float32 {rows.shape}, not {target.dtype} {target.shape}")
        self._translated(lambda runner: runner(rows, target), f"{len(rows)} rows do not fit")
        return target

    def load(self, rows: FloatRows) -> None:
        """Put rows, at most the top bucket, onto the device; only where there is a `resident`. Raises like `run`."""
        self._check_rows(rows)
        self._translated(lambda _: self._stay().load(rows), f"{len(rows)} rows do not fit")

    def steps(self, more: Callable[[], bool] = once) -> None:
        """One step of f for the rows there, and further ones as long as ``more`` says so after each.

        One that raises leaves them as they were; raises as :meth:`run`.
        """
        self._translated(lambda _: self._stay().steps(more), "a step does not fit")

    def fetch(self, out: FloatRows) -> None:
        """Copy the first rows, as many as ``out`` has, from the device; raises as :meth:`run`."""
        self._check_rows(out)
        self._translated(lambda _: self._stay().fetch(out), f"{len(out)} rows do not fit")

    def warm_up(self) -> None:
        """Run every bucket twice each way, so that no caller waits for algorithm search, allocations or captures.

        Buckets that do not fit the device's memory are given up.

        Raises:
            DeviceOutOfMemory: not even the smallest batch fits.
            ModelFailure: the model does not run.
        """
        while True:
            try:
                for size in self.buckets or (1,):
                    self._warm(np.zeros((size, *self.shape), dtype=np.float32))
            except DeviceOutOfMemory:
                if self.buckets in (None, (1,)):
                    raise
                self._restart()
            else:
                return

    def reduce_max_batch(self) -> None:
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
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def _warm(self, rows: FloatRows) -> None:
        self.run(self.run(rows))
        if self.resident is not None:
            self.load(rows)
            for _ in range(4):
                self.steps()
            self.fetch(rows)

    def _restart(self) -> None:
        if self.buckets is not None:
            self.buckets = self.buckets[:-1] or (max(1, self.buckets[-1] // 2),)
        self.close()  # first, because there is no room for both
        self._runner = self._runner_for(self._session())

    def _session(self) -> Any:
        if self.device == "cpu":
            return cpu_session(self._data, self._threads)
        with CAPTURES.together() if self._cuda.graphs else nullcontext():
            return cuda_session(self._data, self._cuda)

    def _runner_for(self, session: Any) -> Runner:
        if self.buckets is None:
            return DirectRunner(session)
        cuda = self._cuda
        # A session keeps the plans of its convolutions for the last batch size only, and making them anew takes longer
        # than running them. So every bucket has a session of its own, unless graphs replace the plans.
        runner = PaddedRunner(
            session,
            self.shape,
            self.buckets,
            "cuda",
            device_id=cuda.device_id,
            graphs=cuda.graphs,
            another=None if cuda.graphs else self._session,
        )
        return SingleThreadRunner(runner) if cuda.graphs else runner

    def _check_rows(self, rows: FloatRows) -> None:
        if rows.ndim != 4 or rows.shape[1:] != self.shape or rows.dtype != np.float32 or not len(rows):
            raise ValueError(f"rows must be float32 (N, *{self.shape}), not {rows.dtype} {rows.shape}")

    def _stay(self) -> ResidentRunner:
        if self.buckets is None:
            raise ValueError("rows do not stay on this device")
        return cast(ResidentRunner, self._runner)

    def _translated(self, call: Callable[[Runner], None], shortage: str) -> None:
        """Call the runner, with its errors as this class promises them."""
        if self._runner is None:
            raise ModelFailure("the model is closed")
        try:
            call(self._runner)
        except Exception as exc:  # onnxruntime's errors share no other base class
            if _LOST.search(str(exc)):
                raise DeviceLost(short_message(exc)) from exc
            if not _is_shortage(exc):
                raise ModelFailure("the model failed on these rows") from exc
            shortage = f"{shortage}: {short_message(exc)}"
        else:
            return
        # Not chained: the original's traceback would keep the session and its buffers alive while shed() runs.
        raise DeviceOutOfMemory(shortage)


def bounded_buckets(buckets: Sequence[int], limit: int, *, single: bool) -> tuple[int, ...]:
    """The ascending ``buckets`` up to ``limit`` rows, or ``limit`` itself when none is; the largest if ``single``."""
    kept = tuple(size for size in buckets if size <= limit) or (limit,)
    return kept[-1:] if single else kept


def _described(entries: dict[str, str]) -> tuple[ModelCard, NoiseSource]:
    try:
        return from_metadata(entries)
    except CardError as exc:
        raise StartupError(str(exc)) from exc


def _check_signature(session: Any, shape: ImageShape) -> None:
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
