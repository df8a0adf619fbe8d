"""How admission and the fair queue share one model among callers that send as much as they can, in
simulated time.

python -m benchmarks.bench_admission --results benchmarks/results/admission.json
"""

import argparse
import heapq
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from benchmarks.harness.common import Json, percentile, rounded, run_benchmark, target
from benchmarks.reliability.cases import Rng
from service.domain.tasks import SchedulingParams, StepParams
from service.scheduling.admission import Admission
from service.scheduling.queue import FairQueue
from service.scheduling.report import ModelCall
from service.scheduling.request import Batch, ScheduledRequest

METHOD: Final = (
    "service.scheduling decides which requests are admitted and which rows run; a model call "
    "takes 0.2 ms and 0.05 ms for each row in simulated time. A caller has many streams of "
    "64 × 300 000 steps, many requests of up to 64 × 16 steps, or two small ones, each again "
    "and again; it tries again 0.1 to 1 s after a rejection. wait: of newcomers, which come "
    "once, with a small request, and try again after 0.1 s, until its first row runs. "
    "throughput: row-steps over those of the same requests under one key, which is a queue "
    "without shares"
)
BATCH_ROWS = 64
QUEUE_ROWS = 4096
CALL_S = 0.0002
ROW_S = 0.00005
TOGETHER: Final = 4000  # requests that all callers have at a time, at most
# newcomers come when the queue is full
START_S = 5.0
EVERY_S = 0.1


class Client(NamedTuple):
    """One request of a caller, sent again ``pause_s`` after its end; that of a newcomer, who
    ``came`` once, is not.
    """

    key: str
    rows: int
    steps: int
    pause_s: float = 0.0
    came: float | None = None


def mixed(rng: Rng, callers: int) -> Iterator[Client]:
    """The requests of callers of random kinds."""
    for key in map(str, range(callers)):
        many = [
            Client(key, 64, 300_000),
            Client(key, int(rng.integers(8, 65)), int(rng.integers(2, 17))),
        ] * max(1, TOGETHER // callers)
        kind = rng.integers(3)
        yield from (
            many[kind::2]
            if kind < 2
            else [small(rng, key)._replace(pause_s=float(rng.uniform(0.1, 2)))] * 2
        )


def small(rng: Rng, key: str) -> Client:
    return Client(key, int(rng.integers(1, 5)), int(rng.integers(1, 5)))


class Simulation:
    """A model and its callers; with ``one_key`` the service cannot tell them apart."""

    def __init__(self, callers: int, seed: int, seconds: float, *, one_key: bool) -> None:
        self.row_steps, self.waits = 0, list[float]()
        self._rng = np.random.default_rng((callers, seed))
        self._one_key = one_key
        self._admission, self._queue = Admission(QUEUE_ROWS, BATCH_ROWS), FairQueue()
        self._clients: dict[ScheduledRequest, Client] = {}
        self._numbers = itertools.count()
        comings = np.arange(START_S, seconds - 1, EVERY_S).tolist()
        self._due = [(0.0, next(self._numbers), client) for client in mixed(self._rng, callers)]
        self._due += [
            (at, next(self._numbers), small(self._rng, f"at {at}")._replace(came=at))
            for at in comings
        ]
        heapq.heapify(self._due)
        now = 0.0
        while now < seconds:
            while self._due[0][0] <= now:
                self._send(heapq.heappop(self._due)[2], now)
            now = self._run(now) if self._queue.row_count else self._due[0][0]
        # Those that were never admitted.
        self.waits += [
            seconds - client.came for _, _, client in self._due if client.came is not None
        ]

    def _send(self, client: Client, now: float) -> None:
        is_stream = client.steps == 300_000
        params = SchedulingParams(
            step_params=StepParams(steps=client.steps),
            key="" if self._one_key else client.key,
            deadline=None if is_stream else now + 30.0,
            streamed=is_stream,
        )
        request = ScheduledRequest(
            np.empty((client.rows, 1, 1, 1), np.float32), params, arrived=now
        )
        if self._admission.admit([request], now):
            pause_s = float(self._rng.uniform(0.1, 1.0)) if client.came is None else 0.1
            heapq.heappush(self._due, (now + pause_s, next(self._numbers), client))
        else:
            self._clients[request] = client
            self._queue.push([request.begin()])

    def _run(self, now: float) -> float:
        """Run a step of the rows whose turn it is; returns its end."""
        chosen, expired = self._queue.take(BATCH_ROWS, now)
        self._admission.on_batch_began(chosen, now)
        for piece in chosen:
            request = piece.request
            if request.started is None and (came := self._clients[request].came) is not None:
                self.waits.append(now - came)
            request.started = now
            piece.steps += 1
            piece.done = piece.steps == request.row_steps
            request.rows_left -= piece.done * piece.count
        rows = sum(piece.count for piece in chosen)
        self.row_steps += rows
        end = now + CALL_S + ROW_S * rows
        batch = Batch(slices=chosen, rows=rows, steps=1, expires=end, reason="", began=now, done=1)
        batch.calls.append(ModelCall(rows, rows, end - now, "", end))
        self._admission.on_batch_ended(batch)
        for piece in chosen:
            if piece.done:
                self._admission.on_rows_done(piece)
        self._close(
            [*expired, *(piece.request for piece in chosen if not piece.request.rows_left)], end
        )
        self._queue.push([piece for piece in chosen if not piece.done])
        return end

    def _close(self, requests: Iterable[ScheduledRequest], now: float) -> None:
        for request in self._admission.close(requests):
            client = self._clients.pop(request)
            if client.came is None:
                heapq.heappush(self._due, (now + client.pause_s, next(self._numbers), client))


def measure(options: argparse.Namespace) -> Json:
    waits = list[float]()
    lines = list[Json]()
    for callers, seed in itertools.product(options.callers, range(options.mixes)):
        own, one = (
            Simulation(callers, seed, options.seconds, one_key=one_key) for one_key in (False, True)
        )
        ordered = sorted(own.waits)
        waits += ordered
        figures = {"p50_s": percentile(ordered, 50), "p999_s": percentile(ordered, 99.9)}
        figures["throughput"] = own.row_steps / one.row_steps
        lines.append(
            {"callers": callers, "mix": seed}
            | {name: rounded(value) for name, value in figures.items()}
        )
    in_time = sum(wait <= 1.0 for wait in waits) / len(waits)
    targets = [
        target("newcomers that wait at most 1 s", rounded(in_time), at_least=0.999),
        target(
            "throughput, least of all", min(line["throughput"] for line in lines), at_least=0.97
        ),
    ]
    return {"targets": targets, "newcomers": len(waits), "mixes": lines}


OPTIONS: Final = {
    "seconds": (20.0, 8.0),
    "callers": ([2, 3, 10, 100, 1000], [2, 100]),
    "mixes": (2, 1),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("admission", METHOD, measure, OPTIONS, judge=True))
