"""The scheduler: step-level continuous batching of repeated applications of f.

After every step finished and converged rows leave the batch, waiting rows join, and the others continue. So a request
of 1 000 steps never holds up one of 1 step.

This module is the side of the event loop. The other side is `service.scheduling.worker`, one thread for each model
instance:

```
  event loop                                            workers
  submit ── requests of one turn ──▶ WorkerPool.inbox ──▶ queue ──▶ batch ──▶ model
  on_events ◀── events of one turn ── Scheduler._outbox ◀───────── results
```
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np

from service.domain.errors import DeadlineExceeded, Draining, IgnError, NotReady
from service.domain.latents import FloatRows
from service.domain.model import Model, ModelMemory, largest_batch
from service.domain.tasks import Result, SchedulingParams
from service.scheduling.admission import Admission
from service.scheduling.observer import SchedulerObserver
from service.scheduling.request import Event, Events, OnEvents, ScheduledRequest
from service.scheduling.worker import Clock, OnBatch, WakeRule, Worker, WorkerPool

_TIMER_S: Final = 0.002  # a timer of the event loop may be early by so much


class Scheduler:
    """Applies one model to the rows of many requests at a time. Belongs to one event loop, unless a method says more.

    Each of the ``models``, one for each device, is called from one thread only; its largest bucket may lower
    ``max_batch_rows``. At most ``queue_rows`` rows may wait, those in a batch not counted, and a request has at most
    ``max_rows`` rows. Deadlines are times on ``clock``, in monotonic seconds. ``on_all_devices_lost`` is called on the
    event loop. Without ``memory`` the models are always open. ``exact``: as in the card.
    """

    def __init__(
        self,
        *models: Model,
        max_batch_rows: int,
        queue_rows: int,
        max_rows: int = 1,
        clock: Clock = time.monotonic,
        observer: SchedulerObserver | None = None,
        on_all_devices_lost: Callable[[], None] = lambda: None,
        prepare_thread: Callable[[], None] = lambda: None,
        wake_rule: WakeRule | None = None,
        on_batch: OnBatch | None = None,
        memory: ModelMemory | None = None,
        exact: bool = False,
    ) -> None:
        self._shape, self._clock, self._exact = models[0].shape, clock, exact
        self._observer = observer or SchedulerObserver()
        batches = (largest_batch(model, max_batch_rows) for model in models)
        self._admission = Admission(queue_rows, *batches, max_rows=max_rows, memory=memory)
        self._max_rows = max_rows
        self._pool = WorkerPool(
            self._admission,
            clock,
            self._observer,
            self._publish,
            devices=len(models),
            prepare_thread=prepare_thread,
            wake_rule=wake_rule,
            on_batch=on_batch,
            on_all_devices_lost=partial(self._call_on_loop, on_all_devices_lost),
        )
        self._workers = [Worker(model, self._pool, index, memory) for index, model in enumerate(models)]
        self._open: dict[ScheduledRequest, OnEvents] = {}
        self._arrivals: list[ScheduledRequest] = []  # of this turn of the event loop
        self._outbox: deque[tuple[ScheduledRequest, Event]] = deque()  # workers append, the event loop pops
        # One timer for all deadlines: one for each request would cost more than the scan when it fires.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # event loop time
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether it can serve: false before :meth:`start`, while a thread is replaced, and without a device left."""
        is_open = not self._closed and self._pool.alive_devices > 0
        return is_open and all(worker.running or worker.device_lost for worker in self._workers)

    @property
    def device_error(self) -> str:
        """Why the last device was lost, so that only a new process can use the model again; empty if one is left."""
        return self._pool.device_error

    @property
    def batch_rows(self) -> int:
        """Rows of the largest batch that runs now, at most those of a request; 1 without a device."""
        return max(1, min(self._max_rows, *self._admission.limits))

    @property
    def rows_queued(self) -> int:
        """Rows admitted, unfinished and in no batch. May be read from any thread."""
        return self._admission.waiting

    def start(self) -> None:
        """Start the threads, once."""
        for worker in self._workers:
            worker.start()

    def close(self, seconds: float = 5.0) -> None:
        """Fail the open requests with `Draining` and end the threads; wait at most ``seconds`` for their current steps.

        May be called from any thread. Elsewhere than on the event loop, the wait does not block the loop.
        """
        self._closed = True
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is running:
            self._fail_all()
        else:
            self._call_on_loop(self._fail_all)
        self._pool.stop()
        until = time.monotonic() + seconds
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))

    @contextlib.contextmanager
    def room_for(self, rows: int, key: str) -> Iterator[None]:
        """Reserve places for rows of a caller while the block makes them; submit them directly after it.

        For rows that are expensive to make, such as those of large images. Without the reservation, every request that
        arrives meanwhile would find the same room, and most of them would be rejected after their rows were made.

        Raises `QueueFull`, `Draining` if closed, or `NotReady` if not started, without a device, or while a worker is
        being replaced.
        """
        with contextlib.ExitStack() as stack:
            try:
                self._check_serving()
                stack.enter_context(self._admission.room_for(rows, key))
            except IgnError as exc:
                self._observer.rejected(exc.error_code)
                raise
            yield

    def submit(
        self, requests: Sequence[tuple[FloatRows, SchedulingParams]], on_events: OnEvents
    ) -> list[ScheduledRequest | IgnError]:
        """Admit the requests of one turn of the event loop together.

        Their rows (N, C, H, W) float32 must not change until the last event. ``on_events`` is called on the event loop
        with all events that these requests, and others submitted with the same function, have in that turn. With
        `SchedulingParams.streamed` these are recorded steps, the last step of every row, and progress. The last event
        of every request is its `Result` or one of these errors:

        - `DeadlineExceeded`: the deadline passed; rows still in the queue were not run.
        - `ModelFailure`: the model raised, or gave values that are not finite, on one of the rows.
        - `Draining`: closed meanwhile.

        Returns for each request its handle, or the error with which it is rejected: one of :meth:`room_for` or of
        `Admission.admit`. A rejected request has no events. Raises ValueError, and admits none, if rows or mask do not
        fit the model.
        """
        check_rows(requests, self._shape)
        loop, now = asyncio.get_running_loop(), self._clock()
        if loop is not self._loop:  # a timer of a loop that was closed never fires
            self._loop, self._timer, self._timer_at = loop, None, math.inf
        handles = [ScheduledRequest(rows, params, arrived=now, exact=self._exact) for rows, params in requests]
        try:
            self._check_serving()
            rejected = self._admission.admit(handles, now)
        except IgnError as exc:
            rejected = dict.fromkeys(handles, exc)
        for error in rejected.values():
            self._observer.rejected(error.error_code)
        self._add([handle for handle in handles if handle not in rejected], on_events, now)
        return [rejected.get(handle, handle) for handle in handles]

    async def run(self, rows: FloatRows, params: SchedulingParams) -> Result:
        """Submit one request and wait for its result or error; cancelling the call cancels the request."""
        return await self.start_run(rows, params).result()

    def start_run(self, rows: FloatRows, params: SchedulingParams) -> "SubmittedRun":
        """Submit one request whose result is awaited later; raises the error with which it is rejected."""
        return SubmittedRun(self, rows, params)

    def cancel(self, request: ScheduledRequest) -> None:
        """End a request whose caller has gone; it has no further event. Does nothing after its last event."""
        if self._open.pop(request, None) is None:
            return
        for closed, open_rows in self._admission.close([request]).items():
            self._pool.submit([closed])
            self._observer.cancelled(open_rows)
            if closed.params.observer is not None:
                closed.params.observer.scheduled(closed.arrived, closed.started, self._clock(), "cancelled")

    def _add(self, requests: list[ScheduledRequest], on_events: OnEvents, now: float) -> None:
        assert self._loop is not None  # noqa: S101 - set by `submit`
        offset, first_deadline = self._loop.time() - now, math.inf
        for request in requests:
            self._open[request] = on_events
            request.timeout_at = request.deadline + offset
            first_deadline = min(first_deadline, request.timeout_at)
        if first_deadline < self._timer_at:
            self._set_timer(first_deadline)
        if requests and not self._arrivals:
            self._loop.call_soon(self._flush_arrivals)
        self._arrivals += requests

    def _flush_arrivals(self) -> None:
        # If each request were given to the workers at once, a busy event loop would wake a worker for the first one.
        # The two would then compete for the interpreter lock while the event loop decodes the other requests.
        arrivals, self._arrivals = self._arrivals, []
        if self._pool.wake_rule:
            self._pool.wake_rule.on_arrivals(len(arrivals))
        self._pool.submit(arrivals)

    def _check_serving(self) -> None:
        if self._closed:
            raise Draining("the service is shutting down")
        if not self.healthy:
            raise NotReady("the model is not ready")

    def _publish(self, events: Events) -> None:
        self._outbox.extend(events)
        self._call_on_loop(self._dispatch)

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                self._loop.call_soon_threadsafe(callback)

    def _dispatch(self) -> None:
        events, together = self._outbox, dict[OnEvents, Events]()
        while events:
            request, event = pair = events.popleft()
            is_last = isinstance(event, Result | IgnError)
            if on_events := self._open.pop(request, None) if is_last else self._open.get(request):
                together.setdefault(on_events, []).append(pair)  # without one the caller has gone
        for on_events, pairs in together.items():
            on_events(pairs)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if self._loop is None or at == math.inf else self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        # The first event of a streamed request ends its deadline.
        now = 0.0 if self._loop is None else self._loop.time() + _TIMER_S
        late = [request for request in self._open if request.timeout_at <= now and request.expires < math.inf]
        self._fail(late, "the deadline passed", DeadlineExceeded)
        self._set_timer(min((r.timeout_at for r in self._open if r.expires < math.inf), default=math.inf))

    def _fail_all(self) -> None:
        self._set_timer(math.inf)
        self._fail([*self._open], "the service is shutting down", Draining)

    def _fail(self, requests: list[ScheduledRequest], text: str, kind: type[IgnError]) -> None:
        # Those that a worker has closed are left out: their outcome is on the way.
        closed = {request: kind(text) for request in self._admission.close(requests)}
        if closed:
            now = self._clock()
            self._pool.submit(closed)
            self._observer.finished([request.finished(error, now) for request, error in closed.items()])
            self._outbox.extend(closed.items())
            self._dispatch()


class SubmittedRun:
    """A request that runs; either `result` is awaited or `cancel` called, once."""

    def __init__(self, scheduler: Scheduler, rows: FloatRows, params: SchedulingParams) -> None:
        self._scheduler = scheduler
        self._end: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        (handle,) = scheduler.submit([(rows, params)], partial(_set_last, self._end))
        if isinstance(handle, IgnError):
            raise handle
        self._handle = handle

    async def result(self) -> Result:
        """The result; raises the error of the request. Cancelling the call cancels the request."""
        try:
            event = await self._end
        finally:
            self.cancel()
        if isinstance(event, IgnError):
            raise event
        assert isinstance(event, Result)  # noqa: S101 - without `streamed` there is no other event
        return event

    def cancel(self) -> None:
        """End the request; does nothing after its last event."""
        self._scheduler.cancel(self._handle)


def _set_last(end: "asyncio.Future[Event]", events: Events) -> None:
    if not end.done():  # done: the caller is being cancelled
        end.set_result(events[-1][1])


def check_rows(requests: Sequence[tuple[FloatRows, SchedulingParams]], shape: tuple[int, int, int]) -> None:
    """Raise `ValueError` unless rows and masks fit a model with rows of this shape."""
    channels, height, width = shape
    for rows, params in requests:
        n, mask = len(rows), params.keep_mask
        if n < 1 or rows.shape[1:] != shape or rows.dtype != np.float32:
            raise ValueError(f"rows must be float32 (N ≥ 1, {channels}, {height}, {width})")
        if mask is None:
            continue
        if mask.shape not in [(n, c, height, width) for c in (1, channels)] or mask.dtype != np.bool_:
            raise ValueError(f"keep_mask must be bool ({n}, 1 or {channels}, {height}, {width})")
