"""How rows get through a session: as many as come, or in buckets whose buffers never move.

In buckets the rows can also stay on the device from one step to the next: `load`, any number of `steps`, `fetch`.
Every bucket has two buffers, and a step reads one and writes the other.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.domain.model import once
from service.runtime.cuda_graphs import CAPTURES
from service.runtime.io_binding import BoundBuffers

ImageShape = tuple[int, int, int]
T = TypeVar("T")


class Runner(Protocol):
    """One step of f for rows that are there, into ``out``, equally long."""

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) into ``out``."""
        ...

    def close(self) -> None:
        """Let go of the session."""
        ...


class ResidentRunner(Runner, Protocol):
    """A runner that can keep rows where the device has them."""

    def load(self, rows: FloatRows) -> None:
        """Put rows, at most the top bucket, onto the device."""
        ...

    def steps(self, more: Callable[[], bool] = once) -> None:
        """Apply f to them, and again while ``more`` says so. A step that raises leaves them as they were."""
        ...

    def fetch(self, out: FloatRows) -> None:
        """Copy the first of them, as many as ``out`` has."""
        ...


class DirectRunner:
    """Run as many rows as come. Plain `run` and a copy: binding the output costs 3 µs more than it saves."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) into ``out``, equally long."""
        result = self._session.run([OUTPUT], {INPUT: rows})[0]
        if result.shape != out.shape:  # would broadcast, and answer one caller with another's row
            raise ValueError(f"the model gave {result.shape} for {rows.shape}")
        out[...] = result

    def close(self) -> None:
        """There is nothing but the session, which goes with this object."""


class PaddedRunner:
    """Run rows padded with zeros to the smallest bucket that holds them, in buffers that stay where they are.

    More rows than the top bucket run one piece after another. Buffers are made when a bucket is first used.

    Args:
        session: an onnxruntime session on ``device``.
        shape: (C, H, W) of one row.
        buckets: batch sizes, ascending.
        device: onnxruntime's name of the kind of device whose memory holds the buffers.
        device_id: its number among those of its kind.
        graphs: the session captures CUDA graphs. A graph replays the shapes and addresses it was captured with, and
            onnxruntime does not compare them; so each pair of buffers and direction has a graph number of its own.
        another: makes a session of the same model for every bucket but the top one; without it all share one.
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
        another: Callable[[], Any] | None = None,
    ) -> None:
        self._session = session
        self._another = another
        self._shape = shape
        self._buckets = tuple(buckets)
        self._device = (device, device_id)
        self._numbers = itertools.count(1) if graphs else None  # 0 is onnxruntime's own
        self._lanes: dict[int, BoundBuffers] = {}
        self._loaded: BoundBuffers | None = None

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) into ``out``, equally long."""
        top = self._buckets[-1]
        for start in range(0, len(rows), top):
            self.load(rows[start : start + top])
            self.steps()
            self.fetch(out[start : start + top])

    def load(self, rows: FloatRows) -> None:
        """Put rows, at most the top bucket, onto the device, in place of those that are there.

        Raises:
            ValueError: there are more of them, or they have another shape.
        """
        self._loaded = None
        size = next((bucket for bucket in self._buckets if bucket >= len(rows)), None)
        if size is None:
            raise ValueError(f"{len(rows)} rows, and the largest bucket is {self._buckets[-1]}")
        with self._together():
            if size not in self._lanes:
                session = self._session_for(size)
                self._lanes[size] = BoundBuffers(session, (size, *self._shape), self._device, self._numbers)
            self._lanes[size].load(rows)
        self._loaded = self._lanes[size]

    def steps(self, more: Callable[[], bool] = once) -> None:
        """Apply f to the rows that are there, and again as long as ``more``, asked after every step, says so."""
        lane = self._lane()
        lane.step()
        while more():
            lane.step()

    def fetch(self, out: FloatRows) -> None:
        """Copy the first rows, as many as ``out`` has."""
        lane = self._lane()
        with self._together():
            lane.fetch(out)

    def close(self) -> None:
        """Nothing but session and buffers, which go with this object."""

    def _session_for(self, size: int) -> Any:
        if self._another is None or size == self._buckets[-1]:
            return self._session
        return self._another()

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._numbers is None else CAPTURES.together()

    def _lane(self) -> "BoundBuffers":
        if self._loaded is None:
            raise ValueError("no rows are loaded")
        return self._loaded


class SingleThreadRunner:
    """A runner whose every call happens in one thread of its own.

    onnxruntime keeps captured CUDA graphs by thread, and forbids to run such a session from several; but a model is
    warmed up and verified in one thread, and serves in another.
    """

    def __init__(self, runner: ResidentRunner) -> None:
        self._runner: ResidentRunner | None = runner
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ign-graphs")

    def __call__(self, rows: FloatRows, out: FloatRows) -> None:
        """Write f(rows) into ``out``, equally long."""
        self._there(lambda runner: runner(rows, out))

    def load(self, rows: FloatRows) -> None:
        """Put rows onto the device."""
        self._there(lambda runner: runner.load(rows))

    def steps(self, more: Callable[[], bool] = once) -> None:
        """Apply f to them, and again while ``more`` says so: it is asked there, so that a stretch is one call."""
        self._there(lambda runner: runner.steps(more))

    def fetch(self, out: FloatRows) -> None:
        """Copy the first of them."""
        self._there(lambda runner: runner.fetch(out))

    def close(self) -> None:
        """Let go of the session, and let the thread end, without waiting for it."""
        with CAPTURES.together():  # its graphs and memory are freed here
            self._runner = None
        self._pool.shutdown(wait=False)

    def _there(self, job: Callable[[ResidentRunner], T]) -> T:
        return self._pool.submit(self._do, job).result()

    def _do(self, job: Callable[[ResidentRunner], T]) -> T:
        if self._runner is None:
            raise ValueError("the runner is closed")
        return job(self._runner)
