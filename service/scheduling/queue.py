"""Rows that wait: what a request is made of, and which of its rows runs next.

Nothing here knows threads, asyncio or the model: it all belongs to the executor thread of `service.scheduling.scheduler`, which
is what lets it go without locks.
"""

import math
from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

import numpy as np

from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Plan, Progress, Result, StepRow

PATIENCE: Final = 64
"""A row passed over this often goes first among the rows of its caller."""

_SLACK: Final = 64  # stale queue entries that are always tolerated, so that short queues are never rebuilt


@dataclass(slots=True)
class Tally:
    """Open rows, the passes they still need in all, and how many of them are in the batch."""

    rows: int = 0
    work: int = 0
    in_batch: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One row on its way: ``ticket`` is not 0 while it waits, ``slot`` not −1 while it is in the batch."""

    request: "Request"
    index: int
    owed: int  # passes still counted in the tallies; belongs to their lock
    steps: int = 0
    captured: int = 0  # entries of `record` already served
    scoring: bool = False  # all steps applied, the drift pass is due
    done: bool = False
    ticket: int = 0
    slot: int = -1

    @property
    def state(self) -> FloatRow:
        """(C, H, W): the row as its last pass left it, valid while it is not in the batch."""
        request = self.request
        row: FloatRow = (request.out if self.steps else request.rows)[self.index]
        return row

    def due(self) -> int:
        """Passes up to and including the next one after which somebody has to look at this row."""
        plan = self.request.plan
        applied = plan.applied
        if self.steps == 0 or self.scoring or applied.tolerance is not None or plan.keep is not None:
            return 1
        record = applied.record
        return (record[self.captured] if self.captured < len(record) else applied.steps) - self.steps

    def recorded(self) -> bool:
        """Whether the step just reached is one of those asked for."""
        record = self.request.plan.applied.record
        return self.captured < len(record) and record[self.captured] == self.steps

    def capture(self, row: FloatRow, change: float | None) -> StepRow:
        """Copy the step just reached out of the buffers; keep it if it was asked for."""
        step = StepRow(index=self.index, step=self.steps, row=row.copy(), change=change)
        if self.recorded():
            self.captured += 1
            self.request.trajectory[self.index].append(step)
        return step

    def finish(self, row: FloatRow, *, converged: bool) -> None:
        """The last step has been applied."""
        request = self.request
        request.out[self.index] = row
        request.steps[self.index] = self.steps
        request.converged[self.index] = converged
        self.scoring = request.plan.applied.score
        self.done = not self.scoring


class Request:
    """The rows that are answered together, and what is known of them so far.

    Args:
        rows: (N, C, H, W) float32; must not change until the request is closed.
        plan: what is asked of them.
        streamed: recorded and last steps are wanted as events, and the deadline ends with the first event.
        arrived: time of submission on the scheduler's clock.
    """

    def __init__(self, rows: FloatRows, plan: Plan, *, streamed: bool, arrived: float) -> None:
        n = len(rows)
        self.rows, self.plan, self.streamed, self.arrived = rows, plan, streamed, arrived
        self.deadline = math.inf if plan.deadline is None else plan.deadline
        self.expires = self.deadline
        self.started: float | None = None
        self.members = [Row(self, i, plan.applied.steps + plan.applied.score) for i in range(n)]
        self.left = n
        # These belong to the lock of the tallies.
        self.closed, self.open_rows, self.in_batch, self.tally = False, n, 0, Tally()
        self.out = np.empty_like(rows, order="C")
        self.steps = np.zeros(n, np.int64)
        self.converged = np.zeros(n, np.bool_)
        self.distance = np.zeros(n, np.float64)
        self.drift = np.zeros(n, np.float64)
        self.trajectory: list[list[StepRow]] = [[] for _ in range(n)]

    def passes_to_answer(self) -> int:
        """Fewest passes after which the caller can have what its deadline waits for."""
        applied, plan = self.plan.applied, self.plan
        if not self.streamed:
            return (applied.steps if applied.tolerance is None else 1) + applied.score
        if plan.progress or applied.tolerance is not None:
            return 1
        return max(1, applied.record[0]) if applied.record else applied.steps

    def progress(self) -> Progress:
        """Where the request stands."""
        slowest = min((row.steps for row in self.members if not row.done), default=self.plan.applied.steps)
        n = len(self.members)
        return Progress(steps_done=slowest, steps=self.plan.applied.steps, rows_done=n - self.left, rows=n)

    def result(self, now: float) -> Result:
        """The answer, once every row is done."""
        started = now if self.started is None else self.started
        return Result(
            rows=self.out,
            steps=self.steps,
            converged=self.converged,
            distance=self.distance,
            drift=self.drift if self.plan.applied.score else None,
            trajectory=self.trajectory,
            queue_s=started - self.arrived,
            compute_s=now - started,
        )


_Entry = tuple[int, float, int, Row]  # steps behind it, deadline, ticket, row: heap order
_Turn = tuple[int, int, Row]  # passes formed before it came, ticket, row: order of waiting


class _Lane:
    """Waiting rows of one caller. Entries whose ticket is no longer the row's are stale and skipped."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.live = 0
        self._least: list[_Entry] = []
        self._longest: deque[_Turn] = deque()
        self._aged_last = False

    def push(self, row: Row, passes: int) -> None:
        heappush(self._least, (row.steps, row.request.deadline, row.ticket, row))
        self._longest.append((passes, row.ticket, row))
        self.live += 1
        self.tidy()

    def pop(self, overdue: int) -> Row:
        """The next row; there must be one. Rows that came at or before pass ``overdue`` have waited too long.

        Overdue rows get every second place at most: behind a very long queue they would otherwise be all that
        runs, and a short request would wait for the whole of it.
        """
        row = None if self._aged_last else self._pop_overdue(overdue)
        self._aged_last = row is not None
        if row is None:
            row = self._pop_least()
        row.ticket = 0
        self.live -= 1
        return row

    def _pop_overdue(self, overdue: int) -> Row | None:
        longest = self._longest
        while longest:
            passes, ticket, row = longest[0]
            if row.ticket == ticket and passes > overdue:
                return None
            longest.popleft()
            if row.ticket == ticket:
                return row
        return None

    def _pop_least(self) -> Row:
        while True:
            _, _, ticket, row = heappop(self._least)
            if row.ticket == ticket:
                return row

    def tidy(self) -> None:
        """Drop stale entries once they outnumber the live ones: constant cost per entry, bounded memory."""
        bound = 2 * self.live + _SLACK
        if len(self._least) > bound:
            self._least = [entry for entry in self._least if entry[3].ticket == entry[2]]
            heapify(self._least)
        if len(self._longest) > bound:
            self._longest = deque(turn for turn in self._longest if turn[2].ticket == turn[1])


class RowQueue:
    """Rows that wait for a place in a batch.

    Places are dealt round robin to caller keys. Within a key the rows with the fewest steps behind them go first,
    ties by earliest deadline, then by arrival; a row passed over `PATIENCE` times goes first. Pushing and taking a
    row cost O(log rows).
    """

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._ring: deque[_Lane] = deque()
        self._tickets = 0
        self._passes = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, row: Row) -> None:
        """Let a row wait."""
        key = row.request.plan.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            self._ring.append(lane)
        self._tickets += 1
        row.ticket = self._tickets
        self._live += 1
        lane.push(row, self._passes)

    def take(self, places: int, now: float) -> tuple[list[Row], list[Request]]:
        """Form one batch: the rows that get a place, and the requests met on the way that had expired.

        Rows of expired and of closed requests leave the queue; they take no place.
        """
        self._passes += 1
        overdue = self._passes - PATIENCE - 1
        taken: list[Row] = []
        expired: list[Request] = []
        ring = self._ring
        while len(taken) < places and ring:
            lane = ring.popleft()
            if lane.live:
                row = lane.pop(overdue)
                self._live -= 1
                if row.request.expires <= now:
                    expired.append(row.request)
                if row.request.closed or row.request.expires <= now:
                    self.forget(row.request)
                else:
                    taken.append(row)
            if lane.live:
                ring.append(lane)
            else:
                del self._lanes[lane.key]
        return taken, expired

    def forget(self, request: Request) -> None:
        """Take all waiting rows of a request out."""
        lane = self._lanes.get(request.plan.key)
        waiting = [row for row in request.members if row.ticket]
        if lane is None or not waiting:
            return
        for row in waiting:
            row.ticket = 0
        lane.live -= len(waiting)
        self._live -= len(waiting)
        lane.tidy()
