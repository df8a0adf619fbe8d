"""The thread that decides, before every pass, who runs, and runs them.

It waits only when there is nothing to do, and it never waits for more: a batch is whatever is there.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from service.admission import Admission
from service.batch import Batch
from service.domain.errors import DeadlineExceeded, IgnError, ModelFailure
from service.domain.tasks import Model, Progress, Result, StepRow
from service.rows import Request, Row, RowQueue

logger = logging.getLogger(__name__)

_SLICE_S: Final = 0.25  # longest stretch of passes nobody hears of; far below the promised second

Event = StepRow | Progress | Result | IgnError
Clock = Callable[[], float]
Publish = Callable[[list[tuple[Request, Event]]], None]


class SchedulerObserver(Protocol):
    """What metrics hear. Called from the executor thread and from the event loop: be quick and thread-safe.

    A subclass may listen to some of it only: each method does nothing by itself.
    """

    def queued(self, rows: int) -> None:
        """So many rows wait now."""
        return

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """One call of the model; reason: `full`, `drained` (all there was), `retry` (part of a failed batch)."""
        return

    def finished(self, rows: int, outcome: str, queue_s: float, compute_s: float) -> None:
        """A request ended with outcome `ok` or the code of its error."""
        return

    def rejected(self, reason: str) -> None:
        """A request was refused; reason is the code of the error."""
        return

    def cancelled(self, rows: int) -> None:
        """A caller left, and so many of its rows were not finished."""
        return

    def early_exit(self, rows: int) -> None:
        """So many rows met their tolerance before their last step."""
        return

    def shed(self, batch_rows: int) -> None:
        """The device ran out of memory; the largest batch is now this."""
        return

    def replaced(self) -> None:
        """The executor thread died and another took its place."""
        return


class Silent(SchedulerObserver):
    """The observer that does not listen."""


def report(observer: SchedulerObserver, request: Request, outcome: Result | IgnError, now: float) -> None:
    """Tell the observer that a request has ended."""
    started = now if request.started is None else request.started
    code = outcome.error_code if isinstance(outcome, IgnError) else "ok"
    observer.finished(len(request.rows), code, started - request.arrived, now - started)


class Executor:
    """The thread that forms batches and runs them. All it shares is the inbox, the books and ``publish``."""

    def __init__(
        self, model: Model, books: Admission, clock: Clock, observer: SchedulerObserver, publish: Publish
    ) -> None:
        self._model, self._books, self._clock = model, books, clock
        self._observer, self._publish = observer, publish
        self._inbox: deque[Request | None] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._working = False
        self.lost = False
        """Whether the device is lost: whatever is still asked of it fails at once."""
        self._reset(set())

    def _reset(self, requests: set[Request]) -> None:
        """Start from what the requests themselves know; every row in them must be out of the batch."""
        self._requests = requests
        self._watched = {request for request in requests if request.streamed and request.plan.progress}
        self._queue = RowQueue()
        self._batch = Batch(self._model, self._books.batch_rows, self._clock, self._ran)
        self._events: list[tuple[Request, Event]] = []
        self._began = self._next_tick = 0.0
        self._in_pass = False
        for request in requests:
            for row in request.members:
                if not row.done:
                    self._queue.push(row)

    @property
    def working(self) -> bool:
        """Whether the thread is there and sound, and the device with it."""
        return self._working and not self.lost

    def start(self) -> None:
        """Start the thread."""
        self._working = True
        self._thread = threading.Thread(target=self._main, name="ign-executor", daemon=True)
        self._thread.start()

    def post(self, *messages: Request | None) -> None:
        """Requests to run or, when they are closed, to forget; None to end the thread."""
        self._inbox.extend(messages)
        with self._wake:
            self._wake.notify()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _main(self) -> None:
        try:
            while self._collect():
                self._form()
                if self._batch.rows:
                    self._pass()
                self._flush()
            self._working = False
        except BaseException as exc:
            # Nothing raised here is expected, and a caller must never wait on a thread that is gone.
            self._working = False
            logger.critical("the executor thread died; another takes its place", exc_info=exc)
            events, failed = self._bury(exc)
            self.start()
            try:
                self._observer.replaced()
                for request, failure in failed:
                    report(self._observer, request, failure, self._clock())
            finally:
                self._publish(events)

    def _bury(self, cause: BaseException) -> tuple[list[tuple[Request, Event]], list[tuple[Request, ModelFailure]]]:
        """Fail the requests the death was about: those in the pass, or all when it was not in a pass.

        Returns all that is left to publish, and what of it are failures.
        """
        doomed = {row.request for row in self._batch.rows} if self._in_pass else set(self._requests)
        failed: list[tuple[Request, ModelFailure]] = []
        for request in doomed:
            failure = ModelFailure("the model failed")
            failure.__cause__ = cause
            if self._books.leave(request) is not None:
                failed.append((request, failure))
        events = [*self._events, *failed]
        self._reset(self._requests - doomed)
        return events, failed

    def _collect(self) -> bool:
        """Take in who came and who left; wait when there is nothing to do. False: the thread is to end."""
        inbox = self._inbox
        if not (inbox or self._batch.rows or len(self._queue)):
            with self._wake:
                self._wake.wait_for(lambda: len(inbox) > 0)
        while inbox:
            request = inbox.popleft()
            if request is None:
                return False
            if request.closed:
                self._forget(request)
                continue
            self._requests.add(request)
            if request.streamed and request.plan.progress:
                self._watched.add(request)
            for row in request.members:
                self._queue.push(row)
        return True

    def _form(self) -> None:
        """Decide anew who runs, unless all who are there run already."""
        batch, queue = self._batch, self._queue
        self._began = now = self._clock()
        if not (len(queue) or batch.stale) and now < batch.expires:
            return
        for row in batch.rows:
            if not (row.done or row.request.closed):
                queue.push(row)
        chosen, expired = queue.take(batch.limit, now)
        left, joined = batch.arrange(chosen)
        self._books.formed(left, joined, now)
        for row in joined:
            self._enter(row, now)
        for request in expired:
            self._end(request, DeadlineExceeded("the deadline passed while waiting"))
        self._observer.queued(self._books.waiting)

    def _enter(self, row: Row, now: float) -> None:
        request = row.request
        if request.started is None:
            request.started = now
        if row.recorded():  # only step 0 can be due before a pass
            self._show(request, row.capture(request.rows[row.index], None))

    def _pass(self) -> None:
        batch = self._batch
        self._flush()  # the prepared input and the expired do not wait for the device
        self._in_pass = True
        passes = 0 if len(self._queue) else batch.cruise(self._began + _SLICE_S, self._inbox)
        finished: list[Row] = []
        if passes == 0:
            passes, finished = 1, self._advance()
        now = self._clock()
        self._books.passed(batch.rows, passes, finished, self._began, now)
        for row in finished:
            self._finish(row.request, now)
        self._in_pass = False
        if self._watched and now >= self._next_tick:
            self._tick(now)

    def _advance(self) -> list[Row]:
        """Run a pass that somebody hears of; returns the rows that need no more."""
        batch = self._batch
        for row, failure in batch.advance():
            self._end(row.request, failure)
        if batch.lost and not self.lost:
            self.lost = True
            logger.critical("the device is lost: every call of it fails until this process is started anew")
        finished, steps = batch.settle()
        for request, step in steps:
            self._show(request, step)
        if batch.limit != self._books.batch_rows:
            self._books.batch_rows = batch.limit
            self._observer.shed(batch.limit)
        return finished

    def _finish(self, request: Request, now: float) -> None:
        """One row of the request is done."""
        request.left -= 1
        if request.left == 0:
            self._end(request, request.result(now))

    def _tick(self, now: float) -> None:
        self._next_tick = now + 2 * _SLICE_S
        for request in self._watched:
            if request.started is not None:
                self._show(request, request.progress())

    def _show(self, request: Request, event: StepRow | Progress) -> None:
        if request.streamed:
            request.expires = float("inf")  # a stream's deadline bounds the wait for its first event
            self._events.append((request, event))

    def _end(self, request: Request, outcome: Result | IgnError) -> None:
        """Close a request from this side, unless its caller was faster."""
        if self._books.leave(request) is not None:
            self._events.append((request, outcome))
            report(self._observer, request, outcome, self._clock())
            if isinstance(outcome, Result):
                early = int(np.count_nonzero(outcome.steps < request.plan.applied.steps))
                if early:
                    self._observer.early_exit(early)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        self._queue.forget(request)
        self._requests.discard(request)
        self._watched.discard(request)
        if any(row.slot >= 0 for row in request.members):
            self._batch.stale = True
        request.members.clear()  # rows and request hold each other: let go without the garbage collector

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._publish(events)

    def _ran(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        self._books.ran(rows, seconds, self._clock())
        self._observer.batch(rows, padded, seconds, reason)
