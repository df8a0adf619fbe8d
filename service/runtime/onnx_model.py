"""One instance of an exported network f on one device, run by onnxruntime.

On the CPU a batch runs at its exact size: a row's bits are the same at every batch size, so padding
would only cost time. On CUDA a batch is padded to a bucket, and runs in device buffers that never
move: a new batch size would search cuDNN's algorithms and grow the memory arena while callers wait.
There, rows can also stay in device memory between steps.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, cast

import numpy as np

from service.artifact.card import INPUT, OUTPUT, from_metadata
from service.artifact.golden import digest_of
from service.artifact.onnx_file import check_self_contained, read_metadata
from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceBatch, DeviceLost, DeviceOutOfMemory
from service.environment import lower_priority
from service.runtime.runners import DirectRunner, ImageShape, PaddedRunner
from service.runtime.session import (
    CudaOptions,
    CudaUnavailable,
    cpu_session,
    cuda_session,
    kind_of,
    lacks_code,
    missing_code,
    short_message,
)

Runner = DirectRunner | PaddedRunner
T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class OnnxModel:
    """f: (N, C, H, W) → (N, C, H, W), float32, in the model's value range. The file itself contains
    the card.

    One thread at a time may call :meth:`run`, the methods of `device_batch`, and
    :meth:`reduce_max_batch`, because on CUDA there is one set of buffers.

    ``data`` is an ONNX file that passes `check_self_contained`; `digest` is its SHA-256 in
    hexadecimal. The device `auto` is CUDA if it works, and else the CPU with the reason in
    `fallback_reason`. ``threads`` ≥ 1 run one operator on the CPU; ``max_batch_rows`` bounds the
    buckets. With ``low_priority``, threads of tiles let other threads go first. Raises
    `StartupError` for a model that this service cannot run, and if ``device`` is `cuda` and it does
    not work.
    """

    def __init__(
        self,
        data: bytes,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        cuda: CudaOptions | None = None,
        threads: int = 1,
        max_batch_rows: int = 64,
        low_priority: bool = True,
    ) -> None:
        check_self_contained(data)
        self._low_priority = low_priority
        self._data = data
        self._threads = threads
        self._cuda = cuda or CudaOptions()
        self.digest = digest_of(data)
        self.device: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
        self.fallback_reason: str | None = None
        self.card, self.noise = from_metadata(read_metadata(data))
        try:
            session = self._make_session()
        except CudaUnavailable as exc:
            if device == "cuda":
                raise
            self.device = "cpu"
            self.fallback_reason = exc.detail
            session = self._make_session()
        self.provider: str = session.get_providers()[0]
        self.shape: ImageShape = self.card.shape
        self._shapes = self.card.row_shapes
        self.buckets: tuple[int, ...] | None = None
        self._missing_code = ""
        if self.device == "cuda":
            self.buckets = bounded_buckets(
                self.card.buckets, max_batch_rows, single=self._cuda.deterministic
            )
            self._missing_code = missing_code(self._cuda.device_id)
            # not an error yet, because another build may hold code for this GPU
            if self._missing_code:
                _LOG.warning("%s", self._missing_code)
        _check_signature(session, self._shapes)
        self._runner: Runner | None = self._make_runner(session)

    @property
    def device_batch(self) -> DeviceBatch | None:
        """The methods that keep rows in device memory between steps; None on the CPU."""
        return self if self.buckets is not None else None

    def run(self, rows: FloatRows) -> FloatRows:
        """One step of f: (N, C, H, W) → the same shape and order.

        Raises `ValueError` if rows are not float32 of a size of the model, `DeviceOutOfMemory`,
        `DeviceLost` if CUDA fails every call of this process from now on, and else `ModelFailure`.
        After an error that does not tell, a row of zeros is run: if that fails too, the device is
        lost.
        """
        self._check_rows(rows)
        return self._call(
            lambda runner: runner(rows), f"{len(rows)} rows do not fit", resident=False
        )

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device, at most the largest bucket; needs a `device_batch`. Raises as
        :meth:`run`.
        """
        self._check_rows(rows)
        self._call(lambda runner: runner.upload(rows), f"{len(rows)} rows do not fit")

    def run_steps(self, keep_going: Callable[[], bool] | None = None) -> None:
        """See `DeviceBatch.run_steps`; raises as :meth:`run`."""
        self._call(lambda runner: runner.run_steps(keep_going), "a step does not fit")

    def download(self, out: FloatRows) -> None:
        """See `DeviceBatch.download`; raises as :meth:`run`."""
        self._check_rows(out)
        self._call(lambda runner: runner.download(out), f"{len(out)} rows do not fit")

    def warm_up(self) -> None:
        """Run every bucket in every way, and give up those that do not fit; raises as
        :meth:`run`.
        """
        # So no caller waits for algorithm search, or allocations. The CPU searches nothing.
        shape = self.shape if self.device == "cuda" else self._shapes[0]
        while True:
            try:
                for size in self.buckets or (1,):
                    self._warm_up_bucket(np.zeros((size, *shape), dtype=np.float32))
            except DeviceOutOfMemory:
                if self.buckets in (None, (1,)):
                    raise
                self._reset_session()
            else:
                return

    def reduce_max_batch(self) -> None:
        """After `DeviceOutOfMemory`: give up the largest bucket, or halve the only one, and start a
        new session.

        Raises as :meth:`warm_up`; StartupError if no session starts any more.
        """
        # The session is replaced because onnxruntime's arena may fail every later run after one
        # failed allocation.
        self._reset_session()
        self.warm_up()

    def close(self) -> None:
        """Release the session and its memory; a later :meth:`run` raises `ModelFailure`."""
        self._runner = None

    def _warm_up_bucket(self, rows: FloatRows) -> None:
        self.run(rows)
        if self.device_batch is not None:
            # Again, because only the second run of a session allocates as all later ones, and in
            # both directions.
            self.upload(rows)
            for _ in range(2):
                self.run_steps()
            self.download(rows)

    def _reset_session(self) -> None:
        if self.buckets is not None:
            self.buckets = self.buckets[:-1] or (max(1, self.buckets[-1] // 2),)
        self.close()  # before the new session starts: the device has no room for both
        self._runner = self._make_runner(self._make_session())

    def _make_session(self) -> Any:
        if self.device == "cpu":
            # Its threads inherit the priority of the one that makes it. Tiles take long, so they
            # let others go first.
            tiled = self.card.tiles is not None
            is_low = tiled and self._low_priority
            with ThreadPoolExecutor(1, initializer=lower_priority if is_low else None) as pool:
                return pool.submit(cpu_session, self._data, self._threads, arena=tiled).result()
        return cuda_session(self._data, self._cuda)

    def _make_runner(self, session: Any) -> Runner:
        if self.buckets is None:
            return DirectRunner(session)
        # A session keeps the plans of its convolutions for the latest batch size only, and making
        # plans takes longer than running them. So every bucket has a session of its own.
        return PaddedRunner(session, self._make_session, self.buckets, "cuda", self._cuda.device_id)

    def _check_rows(self, rows: FloatRows) -> None:
        if (
            rows.ndim != 4
            or rows.shape[1:] not in self._shapes
            or rows.dtype != np.float32
            or not len(rows)
        ):
            shapes = " or ".join(f"(N, *{shape})" for shape in self._shapes)
            raise ValueError(f"rows must be float32 {shapes}, not {rows.dtype} {rows.shape}")

    def _call(self, call: Callable[[PaddedRunner], T], message: str, *, resident: bool = True) -> T:
        runner = self._runner
        if runner is None:
            raise ModelFailure("the model is closed")
        if resident and self.buckets is None:
            raise ValueError("rows do not stay on this device")
        try:
            return call(cast(PaddedRunner, runner))
        except Exception as exc:
            # Resident rows need no probe, which would overwrite them: those of the step before must
            # survive.
            shortage = self._describe_shortage(exc, None if resident else runner)
        # Outside of the handler and without the runner: a traceback that holds the old session
        # would keep its buffers alive while `reduce_max_batch` starts a new session.
        del runner
        raise DeviceOutOfMemory(f"{message}: {shortage}")

    def _describe_shortage(self, exc: Exception, probe: Runner | None) -> str:
        # A line about memory that ran out; any other error of onnxruntime is raised as `run`
        # documents.
        kind = kind_of(exc)
        message = short_message(exc)
        if self._missing_code and lacks_code(exc):
            message = f"{message}; {self._missing_code}"
        if kind == "out of memory":
            return message
        if kind == "lost" or (
            kind == "device" and probe is not None and self._fails_on_zeros(probe)
        ):
            raise DeviceLost(message) from exc
        raise ModelFailure("the model failed on these rows", reason=message) from exc

    def _fails_on_zeros(self, runner: Runner) -> bool:
        # If CUDA fails on a row of zeros too, a failure is not the fault of the rows before.
        zeros = np.zeros((1, *self.shape), dtype=np.float32)
        try:
            runner(zeros)
        except Exception as exc:
            return kind_of(exc) in ("lost", "device")
        return False


def bounded_buckets(buckets: Sequence[int], limit: int, *, single: bool) -> tuple[int, ...]:
    """The ascending ``buckets`` up to ``limit`` rows, or (limit,) if there is none; only the
    largest if ``single``.
    """
    kept = tuple(size for size in buckets if size <= limit) or (limit,)
    return kept[-1:] if single else kept


def _check_signature(session: Any, shapes: Sequence[ImageShape]) -> None:
    *smaller, shape = shapes
    for kind, name, values in (
        ("input", INPUT, session.get_inputs()),
        ("output", OUTPUT, session.get_outputs()),
    ):
        if [value.name for value in values] != [name]:
            raise StartupError(f"the model needs exactly one {kind}, named {name}")
        batch, *rest = values[0].shape or (None,)
        fits = tuple(rest) == shape
        if smaller:  # height and width are open
            fits = (
                rest[:1] == [shape[0]]
                and len(rest) == 3
                and not any(isinstance(side, int) for side in rest[1:])
            )
        if values[0].type != "tensor(float)" or isinstance(batch, int) or not fits:
            expected = "×".join(map(str, (shape[0], "any", "any") if smaller else shape))
            raise StartupError(
                f"{kind} {name} is not float32 (any batch)×{expected}, as the card says"
            )
