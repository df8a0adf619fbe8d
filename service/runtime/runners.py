"""Runners: how a batch of rows gets through a session, at its exact size or padded to a bucket.

`DirectRunner` is for the CPU, `PaddedRunner` for CUDA, and `SingleThreadRunner` wraps the latter for CUDA graphs.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.domain.model import DeviceBatch, never_continue
from service.runtime.cuda_graphs import GRAPH_LOCK
from service.runtime.io_binding import BoundBuffers

ImageShape = tuple[int, int, int]
T = TypeVar("T")


class Runner(Protocol):
    """Runs one step of f. One thread at a time may call it."""

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``, which has the same shape and may be ``rows``."""
        ...

    def close(self) -> None:
        """Release the session."""
        ...


class DeviceRunner(Runner, DeviceBatch, Protocol):
    """A runner that can also keep rows in device memory between steps."""


class DirectRunner:
    """Runs a batch at its exact size, with `session.run` and a copy. Binding the output would cost 3 µs more."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``."""
        result = self._session.run([OUTPUT], {INPUT: rows})[0]
        if result.shape != out.shape:  # numpy would broadcast it, and give one row's result to another row
            raise ValueError(f"the model gave {result.shape} for {rows.shape}")
        out[...] = result

    def close(self) -> None:
        """The session is released with this object."""


class PaddedRunner:
    """Runs a batch padded with zeros to the smallest bucket that holds it, in device buffers that never move.

    Batches larger than the largest bucket run in several calls. The buffers of a bucket are made at its first use.

    Args:
        session: an onnxruntime session on ``device``.
        shape: (C, H, W) of one row.
        buckets: batch sizes, ascending.
        device: onnxruntime's name of the type of device whose memory holds the buffers.
        device_id: index of the device among those of its type.
        graphs: the session captures CUDA graphs.
        make_session: makes a session of the same model for each bucket but the largest; None if all share ``session``.
    """

    def __init__(
        self,
        session: Any,
        shape: ImageShape,
        buckets: Sequence[int],
        device: str,
        *,
        device_id: int = 0,
        graphs: bool = False,
        make_session: Callable[[], Any] | None = None,
    ) -> None:
        self._session = session
        self._make_session = make_session
        self._shape = shape
        self._buckets = tuple(buckets)
        self._device = (device, device_id)
        self._graph_ids = itertools.count(1) if graphs else None  # onnxruntime uses 0 when no id is given
        self._buffers: dict[int, BoundBuffers] = {}
        self._uploaded: BoundBuffers | None = None

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``."""
        largest = self._buckets[-1]
        for start in range(0, len(rows), largest):
            self.upload(rows[start : start + largest])
            self.run_steps()
            self.download(out[start : start + largest])

    def upload(self, rows: FloatRows) -> None:
        """Copy rows, at most the largest bucket, to the device; they replace earlier ones.

        Raises:
            ValueError: there are more rows, or they have another shape. No rows are on the device then.
        """
        self._uploaded = None
        size = next((bucket for bucket in self._buckets if bucket >= len(rows)), None)
        if size is None:
            raise ValueError(f"{len(rows)} rows, and the largest bucket is {self._buckets[-1]}")
        with self._graph_access():
            if size not in self._buffers:
                session = self._session_for(size)
                self._buffers[size] = BoundBuffers(session, (size, *self._shape), self._device, self._graph_ids)
            self._buffers[size].upload(rows)
        self._uploaded = self._buffers[size]

    def run_steps(self, keep_going: Callable[[], bool] = never_continue) -> None:
        """Apply f to the rows on the device, and again while ``keep_going``, called after every step, is true."""
        buffers = self._require_uploaded()
        buffers.run_step()  # takes its own access to devices, because a first run captures a graph
        while keep_going():
            buffers.run_step()

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to ``out``."""
        buffers = self._require_uploaded()
        with self._graph_access():
            buffers.download(out)

    def close(self) -> None:
        """Session and buffers are released with this object."""

    def _session_for(self, size: int) -> Any:
        if self._make_session is None or size == self._buckets[-1]:
            return self._session
        return self._make_session()

    def _graph_access(self) -> AbstractContextManager[None]:
        return nullcontext() if self._graph_ids is None else GRAPH_LOCK.shared()

    def _require_uploaded(self) -> BoundBuffers:
        if self._uploaded is None:
            raise ValueError("no rows are loaded")
        return self._uploaded


class SingleThreadRunner:
    """Makes every call of a runner in one thread of its own.

    onnxruntime keeps captured CUDA graphs for each thread, and does not allow several threads to run such a session.
    But a model is warmed up and verified in one thread, and serves in another.
    """

    def __init__(self, runner: DeviceRunner) -> None:
        self._runner: DeviceRunner | None = runner
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ign-graphs")

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``."""
        self._call(lambda runner: runner(rows, out))

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device."""
        self._call(lambda runner: runner.upload(rows))

    def run_steps(self, keep_going: Callable[[], bool] = never_continue) -> None:
        """Apply f. ``keep_going`` is called in the runner's thread, so that many steps need one change of threads."""
        self._call(lambda runner: runner.run_steps(keep_going))

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to ``out``."""
        self._call(lambda runner: runner.download(out))

    def close(self) -> None:
        """Release the session and let the thread end, without waiting for it."""
        with GRAPH_LOCK.shared():  # the session's graphs and memory are freed here
            self._runner = None
        self._pool.shutdown(wait=False)

    def _call(self, job: Callable[[DeviceRunner], T]) -> T:
        return self._pool.submit(self._call_in_thread, job).result()

    def _call_in_thread(self, job: Callable[[DeviceRunner], T]) -> T:
        # `job` gets the runner as an argument. A closure over it could keep its session alive after `close`.
        if self._runner is None:
            raise ValueError("the runner is closed")
        return job(self._runner)
