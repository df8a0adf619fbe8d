"""Runners: how a batch of rows gets through a session, at its exact size or padded to a bucket.

CPU               DirectRunner          exact size, host memory
CUDA              PaddedRunner          padded to a bucket, BoundBuffers on the device
CUDA with graphs  SingleThreadRunner    the latter in one thread; captures hold GRAPH_LOCK alone
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Condition
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime as ort

from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.domain.model import DeviceBatch

ImageShape = tuple[int, int, int]
T = TypeVar("T")


class Runner(Protocol):
    """Runs one step of f. One thread at a time may call it."""

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``, which has the same shape and may be ``rows``."""

    def close(self) -> None:
        """Release the session: by default together with this object."""
        return


class DeviceRunner(Runner, DeviceBatch, Protocol):
    """A runner that can also keep rows in device memory between steps."""


class DirectRunner(Runner):
    """Runs a batch at its exact size, with `session.run` and a copy. Binding the output would cost 3 µs more."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``."""
        result = self._session.run([OUTPUT], {INPUT: rows})[0]
        if result.shape != out.shape:  # numpy would broadcast it, and give one row's result to another row
            raise ValueError(f"the model gave {result.shape} for {rows.shape}")
        out[...] = result


class CudaGraphLock:
    """A readers–writer lock, not reentrant: any number of threads use devices, or one thread captures a CUDA graph."""

    # onnxruntime captures in CUDA's global mode. While one thread captures, any allocation, copy or release by another
    # thread fails, on any device (error 900), and invalidates the capture.
    def __init__(self) -> None:
        self._changed = Condition()
        self._users = self._waiting_captures = 0
        self._capturing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Access for every use of a device other than a capture."""
        with self._changed:
            # Waiting captures go first. Otherwise they could wait for ever, as there may always be some user.
            self._changed.wait_for(lambda: not (self._capturing or self._waiting_captures))
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Access for a capture."""
        with self._changed:
            self._waiting_captures += 1
            try:
                self._changed.wait_for(lambda: not (self._capturing or self._users))
                self._capturing = True
            finally:
                self._waiting_captures -= 1
                self._changed.notify_all()  # if the wait was interrupted, users need no longer wait for this capture
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


GRAPH_LOCK = CudaGraphLock()  # of this process


class BoundBuffers:
    """The buffers of one bucket (bucket, C, H, W): one array on the host for padding, and two buffers on the device.

    ``device`` is onnxruntime's name of the device type, and the device's index. ``graph_ids`` gives CUDA graph ids; it
    is None without CUDA graphs.
    """

    # A step reads one device buffer and writes the other, so the rows of the step before survive a step that fails.
    #
    #     rows ─▶ host ─ upload ─▶ a ═ f ═▶ b      steps 1, 3, …; download reads the one written last
    #                              a ◀═ f ═ b      steps 2, 4, …
    def __init__(
        self, session: Any, shape: tuple[int, int, int, int], device: tuple[str, int], graph_ids: Iterator[int] | None
    ) -> None:
        self._session = session
        self._host = np.zeros(shape, dtype=np.float32)
        a, b = (ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *device) for _ in range(2))
        self._buffers = (a, b)
        self._bindings = (Binding(session, a, b, graph_ids), Binding(session, b, a, graph_ids))
        self._current = 0  # index of the buffer that has the rows

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device, padded with zeros."""
        if len(rows) > len(self._host) or rows.shape[1:] != self._host.shape[1:]:
            raise ValueError(f"{rows.shape} does not fit {self._host.shape}")
        self._host[: len(rows)] = rows
        self._host[len(rows) :] = 0.0
        self._current = 0
        self._buffers[0].update_inplace(self._host)
        self._bindings[0].binding.synchronize_inputs()

    def run_step(self) -> None:
        """Apply f to the rows on the device."""
        binding = self._bindings[self._current]
        # `run_with_iobinding` returns after the device has finished, so a failure is raised here, before the swap.
        with binding.graph_access():
            self._session.run_with_iobinding(binding.binding, binding.options)
        binding.captured = True
        self._current = 1 - self._current

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to ``out``."""
        self._bindings[1 - self._current].binding.synchronize_outputs()
        out[...] = self._buffers[self._current].numpy()[: len(out)]


class Binding:
    """One direction: a session's input bound to one buffer and its output to the other, with its own CUDA graph."""

    # A graph replays the addresses and shapes it was captured with, and onnxruntime does not check them. So every pair
    # of buffers and direction has its own graph id.
    def __init__(self, session: Any, x: Any, y: Any, graph_ids: Iterator[int] | None) -> None:
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(INPUT, x)
        self.binding.bind_ortvalue_output(OUTPUT, y)
        self.options = None if graph_ids is None else ort.RunOptions()
        self.captured = False  # the first run captures the graph; onnxruntime runs its warm-up runs within that call
        if graph_ids is not None and self.options:
            self.options.add_run_config_entry("gpu_graph_id", str(next(graph_ids)))

    def graph_access(self) -> AbstractContextManager[None]:
        """The access to devices that the next run needs: exclusive for a capture, shared for a replay."""
        if self.options is None:
            return nullcontext()
        return GRAPH_LOCK.shared() if self.captured else GRAPH_LOCK.exclusive()


class PaddedRunner(DeviceRunner):
    """Runs a batch padded with zeros to the smallest bucket that holds it, in device buffers that never move.

    Batches larger than the largest of the ascending ``buckets`` run in several calls. The buffers of a bucket, for rows
    of one size, are made at its first use, in the memory of ``device``, onnxruntime's name of a type of device.
    ``make_session`` makes a session of the same model for each of them but the largest bucket of rows of ``shape``;
    without it all share ``session``.
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
        self._session, self._make_session = session, make_session
        self._shape, self._buckets = shape, tuple(buckets)
        self._device = (device, device_id)
        self._graph_ids = itertools.count(1) if graphs else None  # onnxruntime uses 0 when no id is given
        self._buffers: dict[tuple[int, int, int, int], BoundBuffers] = {}
        self._uploaded: BoundBuffers | None = None

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``."""
        largest = self._buckets[-1]
        for start in range(0, len(rows), largest):
            self.upload(rows[start : start + largest])
            self.run_steps()
            self.download(out[start : start + largest])

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device; after ValueError (too many) none are there."""
        self._uploaded = None
        size = next((bucket for bucket in self._buckets if bucket >= len(rows)), None)
        if size is None:
            raise ValueError(f"{len(rows)} rows, and the largest bucket is {self._buckets[-1]}")
        with self._graph_access():
            shape = (size, *rows.shape[1:])
            if shape not in self._buffers:
                session = self._session
                if self._make_session and shape != (self._buckets[-1], *self._shape):
                    session = self._make_session()
                self._buffers[shape] = BoundBuffers(session, shape, self._device, self._graph_ids)
            self._buffers[shape].upload(rows)
        self._uploaded = self._buffers[shape]

    def run_steps(self, keep_going: Callable[[], bool] | None = None) -> None:
        """See `DeviceBatch.run_steps`."""
        buffers = self._require_uploaded()
        buffers.run_step()  # takes its own access to devices, because a first run captures a graph
        while keep_going is not None and keep_going():
            buffers.run_step()

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to ``out``."""
        buffers = self._require_uploaded()
        with self._graph_access():
            buffers.download(out)

    def _graph_access(self) -> AbstractContextManager[None]:
        return nullcontext() if self._graph_ids is None else GRAPH_LOCK.shared()

    def _require_uploaded(self) -> BoundBuffers:
        if self._uploaded is None:
            raise ValueError("no rows are loaded")
        return self._uploaded


class SingleThreadRunner(DeviceRunner):
    """Makes every call of a runner in one thread of its own."""

    # onnxruntime keeps captured CUDA graphs for each thread, and does not allow several threads to run such a session.
    # But a model is warmed up and verified in one thread, and serves in another.
    def __init__(self, runner: DeviceRunner) -> None:
        self._runner: DeviceRunner | None = runner
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ign-graphs")

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) to ``out``."""
        self._call(lambda runner: runner(rows, out))

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device."""
        self._call(lambda runner: runner.upload(rows))

    def run_steps(self, keep_going: Callable[[], bool] | None = None) -> None:
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
