"""Admission: accept or reject a request by the queue's length and by the predicted time of its
result.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from service.domain.accounts import Capacity
from service.domain.errors import (
    DeadlineUnreachable,
    IgnError,
    NotReady,
    QueueFull,
    WouldMissDeadline,
)
from service.domain.model import ModelMemory
from service.scheduling.request import Batch, Counters, ScheduledRequest, Slice

# Without a call for so long, nothing is known: a service that refuses everybody must start to
# measure again.
_MAX_AGE_S: Final = 30.0
_MIN_CALLS: Final = 8  # model calls before a request is refused because of a prediction
_SMOOTHING: Final = 0.05  # weight of the newest model call


class CostModel:
    """Seconds of one model call, as a·rows + b, fitted by least squares to the latest calls.

    A call weighs less with each one after it, so nothing needs to be kept of it.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._latest = -math.inf
        # Means and central moments, updated as by West (1979): calls of one size have no variance.
        self._rows = self._seconds = 0.0
        self._variance = self._covariance = 0.0
        # Of calls with 2^(k−1) < rows ≤ 2^k, by k: their number, and their smoothed seconds as they
        # are and as they were at least.
        self._sizes: dict[int, tuple[int, float, float]] = {}

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Add a call that ended at ``now``."""
        if now - self._latest > _MAX_AGE_S:
            self._calls = 0
        self._latest = now
        self._calls += 1
        weight = max(_SMOOTHING, 1 / self._calls)
        further = rows - self._rows
        longer = seconds - self._seconds
        self._rows += weight * further
        self._seconds += weight * longer
        self._variance = (1 - weight) * (self._variance + weight * further * further)
        self._covariance = (1 - weight) * (self._covariance + weight * further * longer)
        size = (rows - 1).bit_length()
        count, smoothed, least = self._sizes.get(size, (0, 0.0, math.inf))
        smoothed += max(_SMOOTHING, 1 / (count + 1)) * (seconds - smoothed)
        self._sizes[size] = count + 1, smoothed, min(smoothed, least)

    def seconds(self, rows: float, now: float) -> float | None:
        """Predicted seconds of a call with ``rows`` rows; None if there are too few recent
        calls.
        """
        if self._calls < _MIN_CALLS or now - self._latest > _MAX_AGE_S:
            return None
        if not self._variance:
            # a and b cannot be told apart. This is the lower bound: a smaller batch costs its
            # share, a larger one the same.
            return self._seconds * min(1.0, rows / self._rows)
        # So that neither a nor b is negative:
        slope = self._covariance / self._variance
        slope = min(max(slope, 0.0), self._seconds / self._rows)
        return self._seconds + slope * (rows - self._rows)

    def least_seconds(self, rows: float) -> float:
        """Seconds of a call with ``rows`` rows, at least: what the fastest calls of a size took.

        Of few calls, the least of all sizes.
        """
        # The line of `seconds` is above it while other work slows the calls down.
        shares = [
            (count, least * min(1.0, rows / 2**size))
            for size, (count, _, least) in self._sizes.items()
        ]
        known = [share for count, share in shares if count >= _MIN_CALLS]
        return max(known) if known else min((share for _, share in shares), default=0.0)


class Admission:
    """Counts the open rows and decides whether a new request is admitted. It belongs to the event
    loop.

    At most ``queue_rows`` rows may wait, those in a batch not counted, beside a reserve for callers
    below their share: see `service.domain.accounts`. ``max_rows`` is the number of rows of the
    largest request.
    """

    def __init__(
        self,
        queue_rows: int,
        *batch_rows: int,
        max_rows: int = 1,
        memory: ModelMemory | None = None,
    ) -> None:
        self._memory = memory
        self.limits = list(batch_rows)  # largest batch of each device; 0 if it is lost
        # of all devices that are not lost
        self._places = sum(batch_rows)
        self._devices = len(batch_rows)
        self._queue = Capacity.of(queue_rows, max_rows)
        self.total = Counters()  # of all callers
        self._callers: dict[str, Counters] = {}
        if memory is not None:
            # Any thread calls it: a copy of a dictionary is one operation of the interpreter.
            memory.callers.append(self._callers.copy)
        self._cost = CostModel()
        self._call_began = 0.0
        self._jitter = np.random.default_rng()

    def set_limit(self, device: int, rows: int) -> None:
        """Lower the largest batch of a device, to 0 if it is lost."""
        self.limits[device] = rows
        self._places = sum(self.limits)
        self._devices = sum(limit > 0 for limit in self.limits)

    def admit(
        self, requests: Sequence[ScheduledRequest], now: float
    ) -> dict[ScheduledRequest, IgnError]:
        """Count requests as open, in order; returns the errors of those that are rejected.

        - `QueueFull`: too many rows would wait.
        - `NotReady`: the model is closed, and would not open before the deadline.
        - `DeadlineUnreachable`: the deadline has passed, or cannot be met even on an idle service.
        - `WouldMissDeadline`: the work ahead of the request takes longer than its deadline allows.
        """
        rejected = dict[ScheduledRequest, IgnError]()
        has_room = self._memory is None and self._has_room_for_all(requests, now)
        for request in requests:
            key = request.params.key
            caller = self._callers.get(key) or Counters()
            if not has_room:
                try:
                    self._check(request, caller, now)
                except IgnError as exc:
                    rejected[request] = exc
                    continue
            self._callers[key] = request.caller = caller
            for counters in (self.total, caller):
                counters.rows += request.open.rows
                counters.steps += request.open.steps
        return rejected

    def reserve(self, rows: int, key: str, now: float) -> None:
        """Count rows that a caller is about to submit as waiting, or no longer if ``rows`` is
        negative; raises `QueueFull` if there is no room for them.
        """
        caller = self._callers.get(key) or Counters()
        if rows > 0:
            self._check_room(rows, caller, now)
        self._callers[key] = caller
        self.total.rows += rows
        caller.rows += rows
        self._forget(key, caller)

    def close(self, requests: Iterable[ScheduledRequest]) -> list[ScheduledRequest]:
        """Close requests; returns those that were not closed already."""
        closed = [request for request in requests if not request.closed]
        for request in closed:
            request.closed = True
            own = request.open
            self._count(request, -own.rows, -own.steps, -own.in_batch)
            self._forget(request.params.key, request.caller)
        return closed

    def _forget(self, key: str, caller: Counters) -> None:
        if not caller.rows and self._callers.get(key) is caller:
            del self._callers[key]

    def _check_room(self, rows: int, caller: Counters, now: float) -> None:
        callers = len(self._callers) + (not caller.rows)  # this one included
        held = caller.waiting
        total = self.total.waiting
        if self._queue.has_room(rows, held, total, callers):
            return
        text = "the queue is full"
        if callers > 1 and self._queue.is_over_share(held + rows, callers):
            text = (
                f"{held} rows of this caller wait, and {callers - 1} other callers need "
                f"places (IGN_QUEUE_ROWS)"
            )
        excess = max(rows, total + rows - self._queue.size)
        steps = excess * self.total.steps // max(1, self.total.rows)
        raise QueueFull(text, retry_after=self._retry_after(self._seconds_for(steps, 1, now) or 0))

    def on_batch_began(self, slices: Iterable[Slice], now: float) -> None:
        """Count the rows of a batch that runs from now on."""
        self._call_began = now
        for piece in slices:
            if not piece.request.closed:
                self._count(piece.request, in_batch=piece.count)

    def on_batch_ended(self, batch: Batch) -> None:
        """Learn from the model calls of a batch and count its steps; its slices have left it."""
        for call in batch.calls:
            self._cost.add(call.rows, call.seconds, call.ended)
        for piece in batch.slices:
            if not piece.request.closed:
                done = batch.done * piece.count
                self._count(piece.request, steps=-done, in_batch=-piece.count)

    def on_rows_done(self, piece: Slice) -> None:
        """Count the rows of a slice as finished."""
        # > 0 if it converged earlier, < 0 if the request is exact
        unused = max(0, piece.request.row_steps - piece.steps - piece.scoring) * piece.count
        self._count(piece.request, -piece.count, -unused)

    def _count(
        self, request: ScheduledRequest, rows: int = 0, steps: int = 0, in_batch: int = 0
    ) -> None:
        for counters in (self.total, request.caller, request.open):
            counters.rows += rows
            counters.steps += steps
            counters.in_batch += in_batch

    def _has_room_for_all(self, requests: Sequence[ScheduledRequest], now: float) -> bool:
        # Whether none of the requests would be rejected, even if each ran after all that is open or
        # in the list. The prediction grows with the work ahead and with the steps, so this one is
        # above that of every request.
        total = self.total
        rows = total.waiting
        steps = 1
        work = total.steps
        deadline = math.inf
        for request in requests:
            rows += request.open.rows
            steps = max(steps, request.row_steps)
            work += request.open.steps + request.params.later_rows
            deadline = min(deadline, request.deadline)
        # If all rows together are no more than one share, no caller has more.
        if deadline <= now or rows * (len(self._callers) + len(requests)) > self._queue.size:
            return False
        seconds = self._seconds_for(work, steps, now)
        return seconds is None or now + seconds + self._seconds_left_in_call(now) <= deadline

    def _check(self, request: ScheduledRequest, caller: Counters, now: float) -> None:
        if request.deadline <= now:
            raise DeadlineUnreachable("the deadline has already passed")
        self._check_room(request.open.rows, caller, now)
        memory = self._memory
        if memory and now + (wait := memory.seconds_to_open(request.params.key)) > request.deadline:
            raise NotReady("other models wait for memory (IGN_MODEL_MEMORY_MIB)", retry_after=wait)
        for steps, work, deadline in request.promises():
            self._check_deadline(work, steps, deadline - now, caller, now)

    def _check_deadline(
        self, own_work: int, steps: int, seconds_left: float, caller: Counters, now: float
    ) -> None:
        ahead = self._work_ahead(caller, own_work, steps) if self.total.rows else 0
        queued = self._seconds_for(own_work + ahead, steps, now)
        if queued is None:  # too few model calls to predict anything
            return
        queued += self._seconds_left_in_call(now)
        if queued <= seconds_left:
            return
        calls, rows = self._calls_for(own_work, steps)
        if calls * self._cost.least_seconds(rows) > seconds_left:
            raise DeadlineUnreachable("the deadline cannot be met even on an idle service")
        raise WouldMissDeadline(
            "the service is too busy to answer before the deadline",
            retry_after=self._retry_after(queued - seconds_left),
        )

    def _work_ahead(self, caller: Counters, own_work: int, steps: int) -> int:
        # Row-steps that run before a new request is through, the model calls in progress excluded:
        # every row in a batch has one step in the running model call, so `in_batch` is subtracted
        # from the steps.
        #
        # Rows of the same caller go first only while they have fewer steps applied, so for at most
        # `steps` steps. Other callers get as many places as this one, so each adds at most
        # `own_work` and the work of the same caller. For example, caller A asks for 2 rows of 3
        # steps (`own_work` 6), and open are:
        #
        #     caller  rows  steps  in_batch
        #     A          4     40         4    min(40 − 4, 4 · 3) = 12: first for 3 steps a row
        #     B          1    100         1    100 − 1 = 99 ┐ 104, but they get a place each for
        #     C          1      5         0      5 − 0 =  5 ┘ each of A: at most 2 · (6 + 12) = 36
        #
        # So 12 + 36 = 48 row-steps are ahead, although 140 are open.
        own_steps = caller.steps - caller.in_batch
        same_caller = min(own_steps, caller.rows * steps)
        other_callers = self.total.steps - self.total.in_batch - own_steps
        other_count = len(self._callers) - (caller.rows > 0)
        return same_caller + min(other_callers, other_count * (own_work + same_caller))

    def _seconds_for(self, work: int, steps: int, now: float) -> float | None:
        """Predicted seconds for ``work`` row-steps on all devices in parallel; None if too little
        was measured.
        """
        calls, rows = self._calls_for(work, steps)
        seconds = self._cost.seconds(rows, now)
        return None if seconds is None else calls * seconds

    def _calls_for(self, work: int, steps: int) -> tuple[float, float]:
        """Calls of each device for ``work`` row-steps, of which ``steps`` follow one another, and
        rows of a call.
        """
        calls = max(float(steps), work / self._places)
        return calls, max(1.0, work / calls / self._devices)

    def _seconds_left_in_call(self, now: float) -> float:
        """Predicted seconds until the running model calls end."""
        if not self.total.in_batch:
            return 0.0
        seconds = self._cost.seconds(self.total.in_batch / self._devices, now) or 0.0
        return max(0.0, seconds - (now - self._call_began))

    def _retry_after(self, seconds: float) -> float:
        """``seconds`` within 1…60, randomly spread so that callers refused together do not retry
        together.
        """
        return min(max(seconds, 1.0), 48.0) * float(self._jitter.uniform(1.0, 1.25))
