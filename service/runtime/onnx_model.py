"""One instance of an exported network f on one device, run by onnxruntime.

On the CPU a batch runs at its exact size: a row's bits are the same at every batch size, so padding
would only cost time. On CUDA a batch is padded to a bucket: a new batch size would search cuDNN's
algorithms and grow the memory arena while callers wait.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from service.artifact.card import INPUT, OUTPUT, from_metadata
from service.artifact.golden import digest_of
from service.artifact.onnx_file import check_self_contained, read_metadata
from service.domain.errors import ModelFailure
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory, padded
from service.environment import lower_priority
from service.runtime.session import (
    CudaOptions,
    CudaUnavailable,
    cpu_session,
    cuda_session,
    kind_of,
    short_message,
)


class OnnxModel:
    """f: (N, C, H, W) → (N, C, H, W), float32, in the model's value range. The file itself contains
    the card.

    On CUDA one thread at a time may call its methods; on the CPU several may call `run`.

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
        self._data = data
        self.threads = threads
        self._cuda = cuda or CudaOptions()
        self.digest = digest_of(data)
        self.device: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
        self.fallback_reason: str | None = None
        self.card = from_metadata(read_metadata(data))
        self._low_priority = low_priority and self.card.tiles is not None
        try:
            session = self._make_session()
        except CudaUnavailable as exc:
            if device == "cuda":
                raise
            self.device = "cpu"
            self.fallback_reason = exc.detail
            session = self._make_session()
        self.provider: str = session.get_providers()[0]
        self.shape = self.card.shape
        self.buckets: tuple[int, ...] | None = None
        if self.device == "cuda":
            self.buckets = bounded_buckets(self.card.buckets, max_batch_rows)
        # On CUDA by the shape of their batches: a session keeps the plans of its convolutions for
        # the latest shape only, and making plans takes longer than running them. With the key ():
        # that of all shapes on the CPU, and of the first one on CUDA. A closed model has none.
        self._sessions: dict[tuple[int, ...], Any] = {(): session}

    @property
    def is_low_priority(self) -> bool:
        """Whether its threads let others go first."""
        return self._low_priority and self.device == "cpu"

    def run(self, rows: FloatRows) -> FloatRows:
        """One step of f: (N, C, H, W) → the same shape and order.

        Raises `DeviceOutOfMemory`, `DeviceLost` if CUDA fails every call of this process from now
        on, and else `ModelFailure`. After an error that does not tell, a row of zeros is run: if
        that fails too, the device is lost.
        """
        if not self._sessions:
            raise ModelFailure("the model cannot be opened", reason="it is closed")
        batch = rows if self.buckets is None else padded(rows, self.buckets)
        try:
            return self._compute(batch)[: len(rows)]
        except Exception as exc:
            shortage = self._describe_shortage(exc)
        # Outside of the handler: a traceback that holds the old session would keep its memory while
        # `reduce_max_batch` starts a new session.
        raise DeviceOutOfMemory(f"{len(rows)} rows do not fit: {shortage}")

    def warm_up(self) -> None:
        """Run every bucket, and give up those that do not fit; raises as :meth:`run`."""
        # So no caller waits for algorithm search, or allocations. The CPU searches nothing.
        shape = self.shape if self.device == "cuda" else self.card.row_shapes[0]
        while True:
            try:
                # Twice, because only the second run of a session allocates as all later ones.
                for size in (1,) if self.buckets is None else 2 * self.buckets:
                    self.run(np.zeros((size, *shape), dtype=np.float32))
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
        """Release the session, its file and their memory; a later :meth:`run` raises
        `ModelFailure`.
        """
        self._sessions.clear()
        self._data = b""

    def reopen(self, data: bytes) -> None:
        """Start a session again, after `close`, with the bytes of the same file."""
        self._data = data
        self._sessions[()] = self._make_session()

    def _reset_session(self) -> None:
        if self.buckets is not None:
            self.buckets = self.buckets[:-1] or (max(1, self.buckets[-1] // 2),)
            # Before the new session starts: the device has no room for both. On the CPU another
            # thread may run the old one.
            self._sessions.clear()
        self._sessions[()] = self._make_session()

    def _make_session(self) -> Any:
        if self.device == "cpu":
            # Its threads inherit the priority of the one that makes it. Tiles take long, so they
            # let others go first.
            prepare = lower_priority if self.is_low_priority else None
            with ThreadPoolExecutor(1, initializer=prepare) as pool:
                return pool.submit(cpu_session, self._data, self.threads).result()
        return cuda_session(self._data, self._cuda)

    def _compute(self, rows: FloatRows) -> FloatRows:
        key = () if self.buckets is None else rows.shape
        if key not in self._sessions:
            self._sessions[key] = self._sessions.pop((), None) or self._make_session()
        result: FloatRows = self._sessions[key].run([OUTPUT], {INPUT: rows})[0]
        if result.shape != rows.shape or result.dtype != np.float32:
            raise ValueError(f"the model gave {result.dtype} {result.shape} for {rows.shape}")
        return result

    def _describe_shortage(self, exc: Exception) -> str:
        # A line about memory that ran out; any other error of onnxruntime is raised as `run`
        # documents.
        kind = kind_of(exc)
        message = short_message(exc)
        if kind == "out of memory":
            return message
        if kind == "lost" or (kind == "device" and self._fails_on_zeros()):
            raise DeviceLost(message) from exc
        raise ModelFailure("the model failed on these rows", reason=message) from exc

    def _fails_on_zeros(self) -> bool:
        # If CUDA fails on a row of zeros too, a failure is not the fault of the rows before.
        zeros = padded(np.zeros((1, *self.shape), dtype=np.float32), self.buckets)
        try:
            self._compute(zeros)
        except Exception as exc:
            return kind_of(exc) in ("lost", "device")
        return False


def bounded_buckets(buckets: Sequence[int], limit: int) -> tuple[int, ...]:
    """The ascending ``buckets`` up to ``limit`` rows, or (limit,) if there is none."""
    return tuple(size for size in buckets if size <= limit) or (limit,)
