"""What the executors of one model share: who comes and goes, who waits, and what is to be told.

There is an executor for each device, and one queue for all of them. Whatever is decided is decided under one lock,
which is never held over a call of a model: devices compute side by side, and take turns only in between.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from service.domain.errors import IgnError
from service.domain.tasks import Result, StepOutput, StreamProgress
from service.scheduling.admission import Admission
from service.scheduling.batch import RunningBatch
from service.scheduling.observer import SchedulerObserver, report
from service.scheduling.queue import FairQueue
from service.scheduling.request import Row, ScheduledRequest

_TICK_S: Final = 0.5  # between two looks at how far a stream has come
_CAN_YIELD: Final = hasattr(os, "sched_yield")
_LONG: Final = 4  # steps of a row, on average, that are worth a batch elsewhere

Event = StepOutput | StreamProgress | Result | IgnError
Clock = Callable[[], float]
Publish = Callable[[list[tuple[ScheduledRequest, Event]]], None]


class WorkerPool:
    """One queue, and the executors around it.

    Of what is public here, `post` and `end` are for the event loop, `wait`, `flush`, `yield_core` and `inbox` for
    executors at any time, and all else for executors that hold `lock`.

    Args:
        books: of the same model.
        clock: monotonic seconds.
        observer: hears what metrics count.
        publish: told of what happened, in order.
        lost: told, when a device is, how many are left.
        devices: how many executors there will be.
        least: fewest rows of few steps for which another executor is woken while one is awake.
    """

    def __init__(
        self,
        books: Admission,
        clock: Clock,
        observer: SchedulerObserver,
        publish: Publish,
        *,
        lost: Callable[[int], None] = lambda left: None,
        devices: int = 1,
        least: int = 1,
    ) -> None:
        self.books, self.clock, self.observer = books, clock, observer
        self.lock = threading.Lock()
        self.inbox: deque[ScheduledRequest] = deque()
        self.queue = FairQueue()
        self.batches: dict[int, RunningBatch] = {}
        self.sound = devices
        """Devices that are not lost."""
        self._publish, self._lost, self._least = publish, lost, least
        self._events: list[tuple[ScheduledRequest, Event]] = []
        self._open: set[ScheduledRequest] = set()
        self._watched: set[ScheduledRequest] = set()
        self._next_tick = 0.0
        self._wake = threading.Condition()
        self._idle = 0  # executors that wait
        self._coming = 0  # those that were called to new requests, and have not had their part
        self.ended = False
        """Whether every executor is to end."""

    def post(self, *requests: ScheduledRequest) -> None:
        """Requests to run or, when they are closed, to forget."""
        self.inbox.extend(requests)
        with self._wake:
            if self._idle:
                asleep = self._idle == self.sound
                self._coming += self._call(max(self.books.waiting // self._worth() - self._coming, int(asleep)))

    def end(self) -> None:
        """Let every executor end."""
        self.ended = True
        with self._wake:
            self._call(self._idle)

    def wait(self) -> bool:
        """Wait until there is something to do; returns whether the caller had to be woken for it."""
        woken = False
        if not self._awake():
            with self._wake:
                while not self._awake():
                    woken = True
                    self._idle += 1
                    self._wake.wait()  # whoever calls it counts it out
                    if not self._awake():  # others were faster
                        self._coming = max(0, self._coming - 1)
        return woken

    def places(self, limit: int, *, woken: bool) -> int:
        """How many of the rows that wait an executor takes: its part, if others have nothing to do.

        To those that are on their way this is granted once: waking may take longer than a pass. ``woken``: it is one of
        those that were on their way.
        """
        if self.sound == 1:
            return limit
        with self._wake:
            others, self._coming = self._idle + max(0, self._coming - woken), 0
        return min(limit, max(self._worth(), -(-len(self.queue) // (others + 1))))

    def splits(self, rows: int) -> bool:
        """Whether a batch of so many rows, of which none is done, is better divided with somebody who is idle."""
        return self._idle > 0 and rows >= 2 * self._worth()

    def share(self, *, leaving: bool = False) -> None:
        """Let idle executors have what is left; if the caller is ``leaving``, one of them has to."""
        if len(self.batches) > 1 and len(self.queue):
            with self._wake:
                self._call(max(len(self.queue) // self._worth(), int(leaving)))

    def yield_core(self) -> None:
        """Let the event loop have the core for a moment, where executors can keep all of them busy."""
        if len(self.batches) > 1 and _CAN_YIELD:
            os.sched_yield()

    def take_in(self) -> None:
        """Hear who came and who left."""
        while True:
            try:
                request = self.inbox.popleft()
            except IndexError:
                return
            if request.closed:
                self.forget(request)
                continue
            self._open.add(request)
            if request.streamed and request.params.progress:
                self._watched.add(request)
            for row in request.members:
                self.queue.push(row)

    def lose(self) -> None:
        """One device less."""
        self.sound -= 1
        self._lost(self.sound)

    def give_back(self, rows: Iterable[Row]) -> None:
        """Let rows that are no longer in a batch, and not done, wait again."""
        waiting = [row for row in rows if not row.request.closed]
        self.books.formed(waiting, (), self.clock())
        for row in waiting:
            self.queue.push(row)

    def show(self, request: ScheduledRequest, event: StepOutput | StreamProgress) -> None:
        """Tell a stream of a step or of how far it is."""
        if request.streamed:
            request.expires = float("inf")  # a stream's deadline bounds the wait for its first event
            self._events.append((request, event))

    def close(self, request: ScheduledRequest, outcome: Result | IgnError) -> None:
        """Close a request from this side, unless its caller was faster."""
        if self.books.leave(request) is not None:
            self._events.append((request, outcome))
            report(self.observer, request, outcome, self.clock())
            if isinstance(outcome, Result):
                early = int(np.count_nonzero(outcome.steps < request.params.step_params.steps))
                if early:
                    self.observer.early_exit(early)
        self.forget(request)

    def forget(self, request: ScheduledRequest) -> None:
        """Take a closed request out of everything."""
        self.queue.forget(request)
        self._open.discard(request)
        self._watched.discard(request)
        if any(row.slot >= 0 and not row.done for row in request.members):
            for batch in self.batches.values():
                batch.stale = True
        request.members.clear()  # rows and request hold each other: let go without the garbage collector

    def tick(self, now: float) -> None:
        """Tell streams that asked for it how far they are, from time to time."""
        if not self._watched or now < self._next_tick:
            return
        self._next_tick = now + _TICK_S
        for request in self._watched:
            if request.started is not None:
                self.show(request, request.progress())

    def fail(
        self, doomed: set[ScheduledRequest] | None, failure: Callable[[], IgnError]
    ) -> list[tuple[ScheduledRequest, IgnError]]:
        """Close requests, or all there are, and build the queue anew of the others; nobody is reported.

        Args:
            doomed: who is closed; None for all.
            failure: makes what each is told.

        Returns:
            Whom this has closed, and what they are told.
        """
        doomed = set(self._open) if doomed is None else doomed
        told = [(request, failure()) for request in doomed if self.books.leave(request) is not None]
        self._events.extend(told)
        self._open -= doomed
        self._watched -= doomed
        elsewhere = {row for batch in self.batches.values() for row in batch.rows}
        self.queue = FairQueue()
        for request in self._open:
            for row in request.members:
                if not row.done and row not in elsewhere:
                    self.queue.push(row)
        for batch in self.batches.values():
            batch.stale = True
        return told

    def flush(self) -> None:
        """Publish what has happened. By whichever executor: what comes first is told first."""
        if self._events:
            with self.lock:
                events, self._events = self._events, []
                if events:
                    self._publish(events)

    def _worth(self) -> int:
        """Fewest rows that are worth waking another executor: any, where rows have many steps before them."""
        total = self.books.total
        return 1 if total.work > _LONG * total.rows else self._least

    def _call(self, executors: int) -> int:
        """Wake so many, or as many as are idle, which they are no longer; returns how many. To be locked outside."""
        called = min(executors, self._idle)
        self._idle -= called
        self._wake.notify(called)
        return called

    def _awake(self) -> bool:
        return self.ended or bool(self.inbox) or len(self.queue) > 0
