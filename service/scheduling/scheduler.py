"""Rows in, rows out: step-level continuous batching of repeated applications of f.

After each pass finished and converged rows leave, new rows join, and the rest go round again, so that a request of
1 000 steps never holds up one of 1. This is the event loop's side: it admits requests and hears of records and ends.
`service.scheduling.worker` is the other side, a thread for each device; between the two stand `service.scheduling.worker_pool`, whose inbox is
filled once in a turn of the event loop, the books of `service.scheduling.admission`, and one call into the loop per pass.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.domain.errors import DeadlineExceeded, Draining, IgnError, NotReady
from service.domain.latents import FloatRows
from service.domain.model import Model
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress
from service.scheduling.admission import Admission
from service.scheduling.batch import largest_batch
from service.scheduling.observer import NullObserver, SchedulerObserver, report
from service.scheduling.request import ScheduledRequest
from service.scheduling.worker import Worker
from service.scheduling.worker_pool import Clock, Event, WorkerPool

__all__ = ["Scheduler", "SchedulerObserver"]


@dataclass(slots=True, eq=False)
class _Call:
    """Somebody on the event loop who waits for a request: for its end, or for every event."""

    end: asyncio.Future[Result | IgnError]
    events: asyncio.Queue[Event] | None = None
    timer: asyncio.TimerHandle | None = None

    def hear(self, event: Event) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.events is not None:
            self.events.put_nowait(event)
        elif isinstance(event, Result | IgnError) and not self.end.done():  # done: its caller is being cancelled
            self.end.set_result(event)


class Scheduler:
    """Applies a model to rows of many requests at once. One per model; to be used from one event loop.

    Args:
        models: the network, once for each device; each is called from one thread only.
        max_batch_rows: largest batch of a device; the model's top bucket may lower it.
        queue_rows: most rows that may wait; rows in a batch do not count.
        clock: monotonic seconds; deadlines are times on it.
        observer: hears what metrics count.
        lost: called on the event loop when the last device is lost.
        least: fewest rows of few steps that are worth a batch of their own while another one runs.
    """

    def __init__(
        self,
        *models: Model,
        max_batch_rows: int,
        queue_rows: int,
        clock: Clock = time.monotonic,
        observer: SchedulerObserver | None = None,
        lost: Callable[[], None] = lambda: None,
        least: int = 1,
    ) -> None:
        self._shape = models[0].shape
        self._clock = clock
        self._observer = observer or NullObserver()
        self._books = Admission(queue_rows, *(largest_batch(model, max_batch_rows) for model in models))
        self._desk = WorkerPool(
            self._books,
            clock,
            self._observer,
            self._publish,
            lost=partial(self._lost, lost),
            devices=len(models),
            least=least,
        )
        self._executors = [Worker(model, self._desk, place) for place, model in enumerate(models)]
        self._calls: dict[ScheduledRequest, _Call] = {}
        self._arrivals: list[ScheduledRequest] = []  # of this turn of the event loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether it can serve: not before :meth:`start`, while a thread is replaced, or without a device left."""
        sound = self._desk.sound > 0 and not self._closed
        return sound and all(executor.working or executor.lost for executor in self._executors)

    @property
    def lost(self) -> bool:
        """Whether the last device is lost, and with it this process's use for the model."""
        return self._desk.sound == 0

    @property
    def rows_queued(self) -> int:
        """Rows admitted, unfinished and not in a batch."""
        return self._books.waiting

    def start(self) -> None:
        """Start the threads. Once."""
        for executor in self._executors:
            executor.start()

    def close(self, seconds: float = 5.0) -> None:
        """Fail what is left with `Draining` and end the threads; wait at most so long for the passes they are in.

        May be called from any thread: elsewhere than on the event loop, the wait does not hold that up.
        """
        self._closed = True
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is running:
            self._fail_all()
        else:
            self._on_loop(self._fail_all)
        self._desk.end()
        until = time.monotonic() + seconds
        for executor in self._executors:
            executor.join(max(0.0, until - time.monotonic()))

    def check_capacity(self, rows: int) -> None:
        """Refuse what :meth:`submit` would refuse for its number of rows, before anybody makes them.

        Raises:
            QueueFull, NotReady, Draining: as it would.
        """
        try:
            self._check_serving()
            self._books.check_capacity(rows)
        except IgnError as exc:
            self._observer.rejected(exc.error_code)
            raise

    async def submit(self, rows: FloatRows, params: SchedulingParams) -> Result:
        """Run rows (N, C, H, W) to the end of their plan. They must not be changed meanwhile.

        Cancelling the call takes the rows out of the queue; those in the batch leave it after the pass.

        Raises:
            QueueFull, WouldMissDeadline, DeadlineUnreachable: refused at once.
            DeadlineExceeded: the deadline passed; the rows still queued were not run.
            ModelFailure: the model raised, or gave values that are not finite, on one of the rows.
            NotReady, Draining: not started, a worker being replaced, or shutting down.
            ValueError: rows or mask do not fit the model.
        """
        request, call = self._admit(rows, params, streamed=False)
        try:
            end = await call.end
            if isinstance(end, IgnError):
                raise end
            return end
        finally:
            self._leave(request)

    async def stream(
        self, rows: FloatRows, params: SchedulingParams
    ) -> AsyncGenerator[StepOutput | StreamProgress | Result, None]:
        """As :meth:`submit`, yielding what there is to see as soon as it exists; the `Result` comes last.

        Yields every recorded step of every row, and the last step of every row whether recorded or not. The
        deadline bounds the wait for the first event only. Closing the generator is the cancellation.
        """
        request, call = self._admit(rows, params, streamed=True)
        events = call.events = asyncio.Queue[Event]()
        try:
            while True:
                event = await events.get()
                if isinstance(event, IgnError):
                    raise event
                yield event
                if isinstance(event, Result):
                    return
        finally:
            self._leave(request)

    def _admit(self, rows: FloatRows, params: SchedulingParams, *, streamed: bool) -> tuple[ScheduledRequest, _Call]:
        self._validate(rows, params)
        now = self._clock()
        request = ScheduledRequest(rows, params, streamed=streamed, arrived=now)
        try:
            self._check_serving()
            self._books.admit(request, now)
        except IgnError as exc:
            self._observer.rejected(exc.error_code)
            raise
        self._loop = asyncio.get_running_loop()
        call = self._calls[request] = _Call(self._loop.create_future())
        if params.deadline is not None:
            call.timer = self._loop.call_later(params.deadline - now, self._expire, request)
        if not self._arrivals:
            self._loop.call_soon(self._hand_over)
        self._arrivals.append(request)
        return request, call

    def _hand_over(self) -> None:
        """Let the executors have what has arrived in this turn of the event loop, all at once.

        One by one, a busy loop would find an executor awake with a row or two, and the two of them would then wrestle
        for the interpreter lock at every decoded picture.
        """
        arrivals, self._arrivals = self._arrivals, []
        self._desk.post(*arrivals)

    def _check_serving(self) -> None:
        if self._closed:
            raise Draining("the service is shutting down")
        if not self.healthy:
            raise NotReady("the model is not ready")

    def _validate(self, rows: FloatRows, params: SchedulingParams) -> None:
        n, (channels, height, width) = len(rows), self._shape
        if n < 1 or rows.shape[1:] != self._shape or rows.dtype != np.float32:
            raise ValueError(f"rows must be float32 (N ≥ 1, {channels}, {height}, {width})")
        masks = [(n, c, height, width) for c in (1, channels)]
        if params.keep is not None and (params.keep.shape not in masks or params.keep.dtype != np.bool_):
            raise ValueError(f"keep must be bool ({n}, 1 or {channels}, {height}, {width})")

    def _publish(self, events: list[tuple[ScheduledRequest, Event]]) -> None:
        """Called by the executors: hand the events of one pass to the event loop."""
        self._on_loop(lambda: self._deliver(events))

    def _lost(self, tell: Callable[[], None], left: int) -> None:
        """Called by the executor whose device it was."""
        self._observer.lost()
        if left == 0:
            self._on_loop(tell)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
                self._loop.call_soon_threadsafe(callback)

    def _deliver(self, events: list[tuple[ScheduledRequest, Event]]) -> None:
        for request, event in events:
            call = self._calls.get(request)
            if call is None:  # its caller has left
                continue
            call.hear(event)
            if isinstance(event, Result | IgnError):
                self._forget(request)

    def _expire(self, request: ScheduledRequest) -> None:
        if request.expires < math.inf:  # else its first event is on the way
            self._fail(request, DeadlineExceeded("the deadline passed"))

    def _fail_all(self) -> None:
        for request in list(self._calls):
            self._fail(request, Draining("the service is shutting down"))

    def _fail(self, request: ScheduledRequest, error: IgnError) -> None:
        """End a request from this side, unless the executor was faster."""
        if self._books.leave(request) is None:
            return
        self._desk.post(request)
        report(self._observer, request, error, self._clock())
        self._calls[request].hear(error)
        self._forget(request)

    def _leave(self, request: ScheduledRequest) -> None:
        """The caller is gone: of its own accord if it has not been told of an end."""
        if request not in self._calls:
            return
        dropped = self._books.leave(request)
        if dropped is not None:
            self._desk.post(request)
            self._observer.cancelled(dropped)
        self._forget(request)

    def _forget(self, request: ScheduledRequest) -> None:
        call = self._calls.pop(request, None)
        if call is not None and call.timer is not None:
            call.timer.cancel()
