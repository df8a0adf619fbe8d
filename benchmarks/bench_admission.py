"""How admission and the fair queue share one model among callers that send as much as they can, in simulated time.

python -m benchmarks.bench_admission --results benchmarks/results/admission.json
"""

import argparse
import heapq
import itertools
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np

from benchmarks.harness.common import Json, percentile, rounded, run_benchmark, target
from benchmarks.load_generator.traffic import Rng
from service.domain.latents import FloatRows
from service.domain.tasks import SchedulingParams, StepParams
from service.scheduling.admission import Admission
from service.scheduling.queue import FairQueue
from service.scheduling.request import ScheduledRequest, Slice

METHOD: Final = (
    "service.scheduling decides which requests are admitted and which rows run; a model call takes 0.2 ms and 0.05 ms "
    "for each row in simulated time. A third of the callers each have many streams of 64 × 300 000 steps, many "
    "requests of up to 64 × 16 steps, or up to two small requests. Each tries again 0.1 to 1 s after a rejection. "
    "wait: of newcomers, callers that come once, with a small request, and try again after 0.1 s, until its first row "
    "runs. throughput: row-steps over those of the same callers under one key, which is a queue without shares"
)
BATCH_ROWS, QUEUE_ROWS = 64, 4096
CALL_S, ROW_S = 0.0002, 0.00005
NEWCOMERS_PER_S: Final = 10.0
START_S: Final = 5.0  # newcomers come when the queue is full


@dataclass(slots=True)
class Caller:
    """One caller: what it asks for, and how many requests it wants to have open."""

    key: str
    rows: int
    steps: int
    parallel: int
    pause_s: float
    deadline_s: float | None = 30.0
    came: float | None = None  # when a newcomer came; it sends one request
    open: int = 0


def mixed(rng: Rng, key: str) -> Caller:
    """A caller of a random kind."""
    kind = rng.integers(3)
    if kind == 0:
        return Caller(key, 64, 300_000, 100, 0.0, deadline_s=None)
    if kind == 1:
        return Caller(key, int(rng.integers(8, 65)), int(rng.integers(2, 17)), int(rng.integers(4, 100)), 0.0)
    return small(rng, key, float(rng.uniform(0.1, 2.0)))


def small(rng: Rng, key: str, pause_s: float = 0.0, came: float | None = None) -> Caller:
    parallel = 1 if came else int(rng.integers(1, 3))
    return Caller(key, int(rng.integers(1, 5)), int(rng.integers(1, 5)), parallel, pause_s, came=came)


@cache
def inputs(rows: int) -> FloatRows:
    return np.zeros((rows, 1, 1, 1), np.float32)


@dataclass
class Simulation:
    """The callers of one run; with ``one_key`` the service cannot tell them apart."""

    rng: Rng
    one_key: bool
    now: float = 0.0
    row_steps: int = 0
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission, self.queue = Admission(QUEUE_ROWS, BATCH_ROWS), FairQueue()
        self._numbers = itertools.count()
        self.due: list[tuple[float, int, Caller]] = []
        self._of: dict[ScheduledRequest, Caller] = {}
        self._batch: list[Slice] = []

    def later(self, seconds: float, caller: Caller) -> None:
        heapq.heappush(self.due, (self.now + seconds, next(self._numbers), caller))

    def run(self, seconds: float) -> None:
        while self.now < seconds:
            while self.due and self.due[0][0] <= self.now:
                self._send(heapq.heappop(self.due)[2])
            if self.queue.row_count:
                self._call()
            else:
                self.now = self.due[0][0]

    def _send(self, caller: Caller) -> None:
        if caller.open >= caller.parallel:
            return  # the end of a request sends the next one
        step_params = StepParams(steps=caller.steps)
        deadline = None if caller.deadline_s is None else self.now + caller.deadline_s
        key = "" if self.one_key else caller.key
        params = SchedulingParams(
            step_params=step_params, key=key, deadline=deadline, streamed=caller.deadline_s is None
        )
        request = ScheduledRequest(inputs(caller.rows), params, arrived=self.now)
        if self.admission.admit([request], self.now):
            self.later(0.1 if caller.came else float(self.rng.uniform(0.1, 1.0)), caller)
            return
        self._of[request] = caller
        self.queue.push([request.begin()])
        caller.open += 1
        if caller.open < caller.parallel:
            self.later(caller.pause_s, caller)

    def _call(self) -> None:
        """Run a step of the rows whose turn it is."""
        self.admission.on_rows_moved(self._batch, (), self.now)  # before `take`, which may cut these slices
        chosen, expired = self.queue.take(BATCH_ROWS, self.now)
        self._end(expired)
        self.admission.on_rows_moved((), chosen, self.now)
        for piece in chosen:
            self._begin(piece.request)
            piece.steps += 1
            piece.done = piece.steps == piece.request.row_steps
            piece.request.rows_left -= piece.done * piece.count
        rows, began = sum(piece.count for piece in chosen), self.now
        self.now += CALL_S + ROW_S * rows
        self.row_steps += rows
        self.admission.on_model_call(rows, self.now - began, self.now)
        self.admission.on_steps_done(chosen, 1, [piece for piece in chosen if piece.done], began, self.now)
        self._end([piece.request for piece in chosen if not piece.request.rows_left])
        self._batch = [piece for piece in chosen if not (piece.done or piece.request.closed)]
        self.queue.push(self._batch)

    def _begin(self, request: ScheduledRequest) -> None:
        if request.started is None:
            request.started = self.now
            came = self._of[request].came
            if came is not None:
                self.waits.append(self.now - came)

    def _end(self, requests: list[ScheduledRequest]) -> None:
        for request in self.admission.close(requests):
            caller = self._of.pop(request)
            caller.open -= 1
            if caller.came is None:
                self.later(caller.pause_s, caller)


def simulated(callers: int, seed: int, seconds: float, *, one_key: bool) -> Simulation:
    rng = np.random.default_rng((callers, seed))
    simulation = Simulation(rng, one_key)
    for number in range(callers):
        simulation.later(float(rng.uniform(0, 1)), mixed(rng, f"caller {number}"))
    for number, came in enumerate(np.arange(START_S, seconds - 1, 1 / NEWCOMERS_PER_S)):
        simulation.later(float(came), small(rng, f"newcomer {number}", came=float(came)))
    simulation.run(seconds)
    simulation.waits += [
        seconds - caller.came for _, _, caller in simulation.due if caller.came and caller.came < seconds
    ]
    return simulation


def measure(options: argparse.Namespace) -> Json:
    waits, lines = list[float](), list[Json]()
    for callers, seed in itertools.product(options.callers, range(options.mixes)):
        own, shared = (simulated(callers, seed, options.seconds, one_key=one_key) for one_key in (False, True))
        ordered = sorted(own.waits)
        waits += ordered
        figures = {"p50_s": percentile(ordered, 50), "p999_s": percentile(ordered, 99.9)}
        figures["throughput"] = own.row_steps / shared.row_steps
        lines.append({"callers": callers, "mix": seed} | {name: rounded(value) for name, value in figures.items()})
    in_time = sum(wait <= 1.0 for wait in waits) / len(waits)
    targets = [
        target("newcomers that wait at most 1 s", in_time, at_least=0.999),
        target("throughput, least of all", min(line["throughput"] for line in lines), at_least=0.97),
    ]
    return {"targets": targets, "newcomers": len(waits), "mixes": lines}


OPTIONS: Final = {"seconds": (30.0, 6.5), "callers": ([2, 3, 10, 100, 1000], [2, 100]), "mixes": (3, 1)}

if __name__ == "__main__":
    sys.exit(run_benchmark("admission", METHOD, measure, OPTIONS, judge=True))
