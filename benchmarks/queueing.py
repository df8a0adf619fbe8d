"""One replica in simulated time: what its latencies are at a load, by the scheduler that serves.

The modules of `service.scheduling` run as they are, apart from `scheduler`. The device
only costs time; HTTP, pictures and the rest of Python are one server that takes a fixed time for every request, half of
it before the rows are queued and half after; and the clock jumps from event to event. With one thread and a seeded
source of arrivals, a load always gives the same figures, on any machine.
"""

import heapq
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from typing import Final

import numpy as np

from benchmarks.harness.common import percentile
from service.domain.errors import IgnError
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.scheduling.admission import Admission
from service.scheduling.batch import largest_batch
from service.scheduling.observer import NullObserver
from service.scheduling.request import ScheduledRequest
from service.scheduling.worker import Worker
from service.scheduling.worker_pool import Event, WorkerPool
from service.settings import Settings

SEED: Final = 6
_SETTLING: Final = 1 / 4  # of the requests, at the beginning, that are not counted

Call = Callable[[int], float]
"""Seconds one call of the model takes, by its rows, padding included."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What one process costs.

    Args:
        call: of the model.
        front_s: seconds of the one thread that does HTTP, pictures and everything else in Python, for each request.
        buckets: batch sizes of the device; None where every size is as good.
        settings: bounds of queue, batch, requests in flight and time; the service's defaults.
    """

    call: Call
    front_s: float
    buckets: tuple[int, ...] | None = None
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of it: requests that come by themselves, or callers who each wait for their answer.

    Args:
        requests: in all.
        rows: of each request.
        steps: of each request.
        per_s: Poisson arrivals a second; None for a closed loop.
        callers: of the closed loop.
        long: so many requests of one row and ``long_steps`` steps run all the while.
    """

    requests: int
    rows: int = 1
    steps: int = 1
    per_s: float | None = None
    callers: int = 1
    long: int = 0
    long_steps: int = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of those who came after the beginning, and how many were answered in that time.

    ``refused`` is a share of them; ``late`` were admitted, and missed their deadline.
    """

    p50_ms: float
    p99_ms: float
    per_s: float
    refused: float
    late: int


def simulate(replica: Replica, load: Load, seed: int = SEED) -> Seen:
    """Run a load to its end.

    Raises:
        ValueError: nobody was answered.
    """
    return _Simulation(replica, load, seed).run()


def interpolated(points: Sequence[tuple[int, float]]) -> Call:
    """A cost by rows between measured ones, ascending; beyond the last it grows as between the last two."""

    def cost(rows: int) -> float:
        (a, x), (b, y) = next((piece for piece in pieces if rows <= piece[1][0]), pieces[-1])
        return x + (y - x) * (rows - a) / (b - a)

    pieces = list(pairwise(points))
    if not pieces:
        raise ValueError("a line needs two points")
    return cost


@dataclass(frozen=True, slots=True)
class _Call:
    """A request: when it came, and whether it counts."""

    began: float
    counts: bool


class _Device:
    """A model that leaves its rows as they are, and takes its time."""

    shape = (1, 1, 1)

    def __init__(self, replica: Replica, spend: Callable[[float], None]) -> None:
        self.buckets = replica.buckets
        self._call, self._spend = replica.call, spend

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        self._spend(self._call(len(rows)))
        if out is None:
            return rows
        out[...] = rows
        return out

    def reduce_max_batch(self) -> None:
        raise AssertionError("it cannot run out of memory")


class _Doze(threading.Condition):
    """In place of the executor's wait: time goes on until there is something to do."""

    def __init__(self, until: Callable[[], None]) -> None:
        super().__init__()
        self._until = until

    def wait(self, timeout: float | None = None) -> bool:
        self._until()
        return True


class _Simulation:
    def __init__(self, replica: Replica, load: Load, seed: int) -> None:
        self._replica, self._load, self._settings = replica, load, replica.settings
        self._random = random.Random(seed)
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        model = _Device(replica, self._spend)
        self._admission = Admission(self._settings.queue_rows, largest_batch(model, self._settings.max_batch_rows))
        self._pool = WorkerPool(self._admission, lambda: self.now, NullObserver(), self._publish)
        self._pool._wake = _Doze(self._until)
        self._worker = Worker(model, self._pool)
        self._front_free = 0.0
        self._asked = self._inside = self._over = 0
        self._open: dict[ScheduledRequest, _Call] = {}
        self._long: list[ScheduledRequest] = []
        self._latencies: list[float] = []
        self._refused = self._late = self._answers = 0
        self._counted_from = self._counted_to = 0.0
        self._broken: Exception | None = None

    def run(self) -> Seen:
        load = self._load
        for _ in range(load.long):
            self._run_long()
        for _ in range(1 if load.per_s is not None else load.callers):
            self._ask()
        self._worker._main()
        if self._broken is not None:
            raise self._broken
        ordered = sorted(self._latencies)
        if not ordered:
            raise ValueError(f"nobody was answered under {load}")
        counted = len(ordered) + self._refused + self._late
        return Seen(
            p50_ms=percentile(ordered, 50) * 1e3,
            p99_ms=percentile(ordered, 99) * 1e3,
            per_s=self._answers / (self._counted_to - self._counted_from),
            refused=self._refused / counted,
            late=self._late,
        )

    # Time

    def _at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time, next(self._numbers), action))

    def _next(self) -> None:
        self.now, _, action = heapq.heappop(self._agenda)
        try:
            action()
        except Exception as exc:  # within the model's call, where the scheduler would take it for the model's
            self._broken = exc
            self._stop()

    def _spend(self, seconds: float) -> None:
        """The device is busy; meanwhile others come and go."""
        end = self.now + seconds
        while self._agenda and self._agenda[0][0] <= end:
            self._next()
        self.now = end

    def _until(self) -> None:
        while not self._pool._has_work():
            if self._agenda:
                self._next()
            else:
                self._pool.stop()

    def _front(self, then: Callable[[], None]) -> None:
        """Half of a request's time in the one thread, after whoever came before."""
        self._front_free = max(self._front_free, self.now) + self._replica.front_s / 2
        self._at(self._front_free, then)

    # A request's way

    def _ask(self) -> None:
        """The next request comes: at once, or in its time."""
        if self._asked == self._load.requests:
            return
        self._asked += 1
        wait = 0.0 if self._load.per_s is None else self._random.expovariate(self._load.per_s)
        self._at(self.now + wait, partial(self._arrive, self._asked))

    def _arrive(self, number: int) -> None:
        call = _Call(self.now, number > self._load.requests * _SETTLING)
        if call.counts and not self._counted_from:
            self._counted_from = self.now
        if number == self._load.requests:
            self._counted_to = self.now
        if self._load.per_s is not None:
            self._ask()
        self._inside += 1
        if self._inside > self._settings.max_connections or not self._has_room():
            self._end(call, "refused")
        else:
            self._front(partial(self._submit, call))

    def _has_room(self) -> bool:
        """Asked before the rows are made, as the service does."""
        try:
            self._admission.check_capacity(self._load.rows)
        except IgnError:
            return False
        return True

    def _submit(self, call: _Call) -> None:
        deadline = call.began + self._settings.request_timeout_s
        params = SchedulingParams(step_params=StepParams(steps=self._load.steps), deadline=deadline)
        request = ScheduledRequest(_rows(self._load.rows), params, streamed=False, arrived=self.now)
        try:
            self._admission.admit(request, self.now)
        except IgnError:
            self._end(call, "refused")
            return
        self._open[request] = call
        self._pool.submit(request)
        self._at(deadline, partial(self._expire, request))

    def _publish(self, events: list[tuple[ScheduledRequest, Event]]) -> None:
        for request, event in events:
            call = self._open.pop(request, None)
            if call is not None:
                self._front(partial(self._end, call, "answered" if isinstance(event, Result) else "late"))

    def _expire(self, request: ScheduledRequest) -> None:
        if self._admission.close(request) is not None:
            self._pool.submit(request)
            self._end(self._open.pop(request), "late")

    def _end(self, call: _Call, outcome: str) -> None:
        self._inside -= 1
        self._over += 1
        if self._counted_from and not self._counted_to:
            self._answers += outcome == "answered"
        if call.counts:
            self._latencies += [self.now - call.began] if outcome == "answered" else []
            self._late += outcome == "late"
            self._refused += outcome == "refused"
        if self._over == self._load.requests:
            self._stop()
        elif self._load.per_s is None:
            self._ask()

    def _run_long(self) -> None:
        """Start a request that runs all the while."""
        params = SchedulingParams(step_params=StepParams(steps=self._load.long_steps))
        request = ScheduledRequest(_rows(1), params, streamed=False, arrived=self.now)
        self._admission.admit(request, self.now)
        self._long.append(request)
        self._pool.submit(request)

    def _stop(self) -> None:
        """All have been answered: the long ones need not end, nor do deadlines that are met have to be waited for."""
        self._agenda.clear()
        for request in self._long:
            if self._admission.close(request) is not None:
                self._pool.submit(request)


def _rows(n: int) -> FloatRows:
    return np.zeros((n, *_Device.shape), np.float32)
