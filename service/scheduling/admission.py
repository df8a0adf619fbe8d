"""Whether a new request is let in: what is open, what a batch costs, how fast the queue drains.

The books are kept by two threads, the event loop (who comes, who leaves) and the executor (what has run), hence the
one lock, which is never held over an await or a call of the model.
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from service.domain.errors import DeadlineUnreachable, QueueFull, WouldMissDeadline
from service.scheduling.request import Counters, Row, ScheduledRequest

_WINDOW: Final = 64  # calls of the model the line is fitted to
_MEMORY_S: Final = 30.0  # older ones are forgotten: a service that refuses everybody must get to measure again
_ENOUGH: Final = 8  # calls seen before anybody is refused on a prediction
_SMOOTHING: Final = 0.05  # weight of the newest pass in the drain rate


class CostModel:
    """Seconds one call of the model takes, as a·rows + b fitted by least squares to the latest calls."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, int, int]] = deque()
        # Σ1, Σn, Σt, Σn², Σnt over the window, in rows and nanoseconds: integers, so that nothing drifts.
        self._sums = [0, 0, 0, 0, 0]

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Book a call that ended at ``now``."""
        nanoseconds = round(seconds * 1e9)
        self._calls.append((now, rows, nanoseconds))
        self._count(1, rows, nanoseconds)
        if len(self._calls) > _WINDOW:
            self._count(-1, *self._calls.popleft()[1:])

    def seconds(self, rows: float, now: float) -> float | None:
        """Predicted seconds for a batch of ``rows``, or None while too little has been seen lately.

        Where the sizes seen do not tell a from b, the lower bound: a smaller batch costs its share, a larger one
        the same.
        """
        while self._calls and self._calls[0][0] < now - _MEMORY_S:
            self._count(-1, *self._calls.popleft()[1:])
        count, n, t, nn, nt = self._sums
        if count < _ENOUGH:
            return None
        mean_n, mean_t = n / count, t / count * 1e-9
        spread = count * nn - n * n
        if spread == 0:
            return mean_t * min(1.0, rows / mean_n)
        slope = (count * nt - n * t) / spread * 1e-9
        slope = min(max(slope, 0.0), mean_t / mean_n)  # neither a nor b is ever negative
        return mean_t + slope * (rows - mean_n)

    def _count(self, sign: int, n: int, t: int) -> None:
        sums = self._sums
        sums[0] += sign
        sums[1] += sign * n
        sums[2] += sign * t
        sums[3] += sign * n * n
        sums[4] += sign * n * t


class Admission:
    """The books of open rows, and the gate in front of them.

    Args:
        queue_rows: most rows that may wait; those in a batch do not count.
        batch_rows: largest batch of each device.

    `total` is what is open over all callers.
    """

    def __init__(self, queue_rows: int, *batch_rows: int) -> None:
        self.limits = list(batch_rows)
        """Largest batch of each device; executors lower it: when it runs out of memory, and to 0 when it is lost."""
        self._queue_rows = queue_rows
        self._lock = threading.Lock()
        self.total = Counters()
        self._keys: dict[str, Counters] = {}
        self._cost = CostModel()
        self._pass_began = 0.0
        self._done, self._busy_s = 0.0, 0.0  # smoothed row-steps, and seconds, per pass
        self._jitter = np.random.default_rng()

    @property
    def waiting(self) -> int:
        """Rows admitted, unfinished and not in the batch."""
        return self.total.rows - self.total.in_batch

    def admit(self, request: ScheduledRequest, now: float) -> None:
        """Let a request in.

        Raises:
            QueueFull: rows waiting would pass the limit.
            DeadlineUnreachable: its deadline has passed, or cannot be met even on an idle service.
            WouldMissDeadline: the queue in the way is longer than its deadline.
        """
        with self._lock:
            if request.deadline <= now:
                raise DeadlineUnreachable("the deadline has already passed")
            rows = len(request.members)
            self._check_room(rows)
            tally = self._keys.get(request.params.key, Counters())
            if request.params.deadline is not None:
                self._check_deadline(request, tally, now)
            self._keys[request.params.key] = request.tally = tally
            work = sum(row.owed for row in request.members)
            for books in (self.total, tally):
                books.rows += rows
                books.work += work

    def check_capacity(self, rows: int) -> None:
        """Raise `QueueFull` where a request of so many rows would be refused for their number alone."""
        with self._lock:
            self._check_room(rows)

    def leave(self, request: ScheduledRequest) -> int | None:
        """Close a request; returns how many of its rows were still open, or None if it was closed before.

        Whoever closes a request is the one who answers for it: there is exactly one.
        """
        with self._lock:
            if request.closed:
                return None
            dropped = request.open_rows
            work = sum(row.owed for row in request.members)
            request.closed = True  # last: the executor, once it sees this, clears the members
            for books in (self.total, request.tally):
                books.rows -= dropped
                books.work -= work
                books.in_batch -= request.in_batch
            key = request.params.key
            if request.tally.rows == 0 and self._keys.get(key) is request.tally:
                del self._keys[key]
            return dropped

    def formed(self, left: Iterable[Row], joined: Iterable[Row], now: float) -> None:
        """A batch was put together: who went back to waiting, who no longer waits."""
        with self._lock:
            self._pass_began = now
            for rows, change in ((left, -1), (joined, 1)):
                for row in rows:
                    if not row.done:
                        self._move(row.request, change)

    def ran(self, rows: int, seconds: float, now: float) -> None:
        """The model was called once."""
        with self._lock:
            self._cost.add(rows, seconds, now)

    def passed(self, rows: Sequence[Row], passes: int, finished: Iterable[Row], began: float, now: float) -> None:
        """``rows`` took ``passes`` steps each between two times, and those ``finished`` need no more."""
        with self._lock:
            self._pass_began = now
            self._done += _SMOOTHING * (passes * len(rows) - self._done)
            self._busy_s += _SMOOTHING * (now - began - self._busy_s)
            for row in rows:
                if not row.request.closed:
                    self._work(row, passes)
            for row in finished:
                if not row.request.closed:
                    self._work(row, row.owed)
                    self._move(row.request, -1)
                    row.request.open_rows -= 1
                    row.request.tally.rows -= 1
                    self.total.rows -= 1

    def _work(self, row: Row, passes: int) -> None:
        row.owed -= passes
        row.request.tally.work -= passes
        self.total.work -= passes

    def _move(self, request: ScheduledRequest, rows: int) -> None:
        if not request.closed:
            request.in_batch += rows
            request.tally.in_batch += rows
            self.total.in_batch += rows

    def _check_room(self, rows: int) -> None:
        excess = self.waiting + rows - self._queue_rows
        if excess > 0:
            raise QueueFull("the queue is full", retry_after=self._retry_after(self._seconds_for(excess)))

    def _check_deadline(self, request: ScheduledRequest, tally: Counters, now: float) -> None:
        passes, left = request.passes_to_answer(), request.deadline - now
        own = len(request.members) * passes
        alone = self._seconds(own, passes, now)
        if alone is None:
            return
        if alone > left:
            raise DeadlineUnreachable("the deadline cannot be met even on an idle service")
        behind = self._remaining_pass(now) + (
            self._seconds(own + self._in_the_way(tally, own, passes), passes, now) or 0.0
        )
        if behind > left:
            raise WouldMissDeadline(
                "the queue in the way is longer than the deadline",
                retry_after=self._retry_after(behind - left),
            )

    def _in_the_way(self, tally: Counters, own: int, passes: int) -> int:
        """Row-steps dealt before a new request has had its own, after the pass that is running.

        Rows of the same key go first only while they have fewer steps behind them, so for ``passes`` steps at most.
        Of the other keys none gets more places than this one.
        """
        same = min(tally.work - tally.in_batch, tally.rows * passes)
        others = self.total.work - self.total.in_batch - (tally.work - tally.in_batch)
        keys = len(self._keys) - (tally.rows > 0)
        return same + min(others, keys * (own + same))

    def _seconds(self, work: int, passes: int, now: float) -> float | None:
        """Seconds for ``work`` row-steps of which ``passes`` must follow one another, on all devices side by side."""
        count = max(float(passes), work / sum(self.limits))
        each = self._cost.seconds(work / count / self._devices, now)
        return None if each is None else count * each

    def _remaining_pass(self, now: float) -> float:
        if not self.total.in_batch:
            return 0.0
        seconds = self._cost.seconds(self.total.in_batch / self._devices, now) or 0.0
        return max(0.0, seconds - (now - self._pass_began))

    def _seconds_for(self, rows: int) -> float:
        """Seconds until so many rows have left, at the measured drain rate."""
        if not (self._done and self.total.rows):
            return 0.0
        return rows * self.total.work / self.total.rows * self._busy_s / self._done / self._devices

    @property
    def _devices(self) -> int:
        return sum(limit > 0 for limit in self.limits)

    def _retry_after(self, seconds: float) -> float:
        """Clamped to 1…60 s, and spread so that those refused together do not come back together."""
        return min(max(seconds, 1.0), 48.0) * float(self._jitter.uniform(1.0, 1.25))
