"""The scheduler: step-level continuous batching of repeated applications of f.

After every step finished and converged rows leave the batch, waiting rows join, and the others continue. So a request
of 1 000 steps never holds up one of 1 step.

This module is the side of the event loop: it admits requests, and delivers events to their callers. The other side is
`service.scheduling.worker`, one thread for each model instance. Between them are the inbox of
`service.scheduling.worker_pool`, filled once in a turn of the event loop; the counters of
`service.scheduling.admission`; and one call into the event loop for the events of a step.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from service.domain.errors import DeadlineExceeded, Draining, IgnError, NotReady
from service.domain.latents import FloatRows
from service.domain.model import Model, largest_batch
from service.domain.tasks import Result, SchedulingParams
from service.scheduling.admission import Admission
from service.scheduling.interface import Deliver, Event, RowScheduler, check_rows
from service.scheduling.observer import NullObserver, SchedulerObserver
from service.scheduling.request import ScheduledRequest
from service.scheduling.wake_rule import WakeRule
from service.scheduling.worker import Worker
from service.scheduling.worker_pool import Clock, OnBatch, WorkerPool

__all__ = ["Scheduler", "SchedulerObserver"]


DeliverMany = Callable[[list[tuple[ScheduledRequest, Event]]], None]
_TIMER_S: Final = 0.002  # a timer of the event loop may be early by so much


class Scheduler(RowScheduler[ScheduledRequest]):
    """Applies one model to the rows of many requests at a time. Belongs to one event loop, unless a method says more.

    Args:
        models: the instances of the model, one for each device; each is called from one thread only.
        max_batch_rows: largest batch of a device; the model's largest bucket may lower it.
        queue_rows: most rows that may wait; rows in a batch do not count.
        clock: monotonic seconds; deadlines are times on it.
        observer: receives what metrics count.
        on_all_devices_lost: called on the event loop when the last device is lost.
        wake_rule: how many rows of few steps are worth a batch of their own while another one runs; None: any.
        on_batch: called after each batch, for traces.
    """

    def __init__(
        self,
        *models: Model,
        max_batch_rows: int,
        queue_rows: int,
        clock: Clock = time.monotonic,
        observer: SchedulerObserver | None = None,
        on_all_devices_lost: Callable[[], None] = lambda: None,
        wake_rule: WakeRule | None = None,
        on_batch: OnBatch | None = None,
    ) -> None:
        self._shape = models[0].shape
        self._clock = clock
        self._observer = observer or NullObserver()
        self._admission = Admission(queue_rows, *(largest_batch(model, max_batch_rows) for model in models))
        self._pool = WorkerPool(
            self._admission,
            clock,
            self._observer,
            self._send_to_loop,
            on_device_lost=partial(self._on_device_lost, on_all_devices_lost),
            devices=len(models),
            wake_rule=wake_rule,
            on_batch=on_batch,
        )
        self._workers = [Worker(model, self._pool, index) for index, model in enumerate(models)]
        self._waiters: dict[ScheduledRequest, Deliver] = {}  # for each open request, or in the next
        self._group_waiters: dict[ScheduledRequest, DeliverMany] = {}
        self._arrivals: list[ScheduledRequest] = []  # of this turn of the event loop
        # One timer for all deadlines: one for each request would cost more than the scan when it fires.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # event loop time
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether it can serve: false before :meth:`start`, while a thread is replaced, and without a device left."""
        if self._closed or not self._pool.alive_devices:
            return False
        return all(worker.running or worker.device_lost for worker in self._workers)

    @property
    def all_devices_lost(self) -> bool:
        """Whether the last device is lost. Only a new process can use the model again."""
        return self._pool.alive_devices == 0

    @property
    def device_error(self) -> str:
        """Why the latest device was lost, in one line for the operator; empty if none was. Any thread may read it."""
        return self._pool.device_error

    @property
    def rows_open(self) -> int:
        """Rows admitted and unfinished. May be read from any thread."""
        return self._admission.total.rows

    @property
    def rows_queued(self) -> int:
        """Rows admitted, unfinished and in no batch. May be read from any thread."""
        return self._admission.waiting

    @property
    def idle_workers(self) -> int:
        """Workers that wait for work. May be read from any thread."""
        return self._pool.idle_workers

    def start(self) -> None:
        """Start the threads. May be called once."""
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

    async def check_capacity(self, rows: int) -> None:
        """Refuse now what :meth:`submit` would refuse for its number of rows."""
        error = self._capacity_error(rows)
        if error is not None:
            self.count_refusal(error)
            raise error

    def refusal(self, rows: int) -> IgnError | None:
        """Why :meth:`room_for` would refuse now; None if it would not."""
        return self._capacity_error(self._reserved + rows)

    def count_refusal(self, error: IgnError) -> None:
        """Count a request that a caller has refused because of :meth:`refusal`."""
        self._observer.rejected(error.error_code)

    def _capacity_error(self, rows: int) -> IgnError | None:
        try:
            self._check_serving()
            self._admission.check_capacity(rows)
        except IgnError as exc:
            return exc
        return None

    def begin(self, rows: FloatRows, params: SchedulingParams, deliver: Deliver, *, streamed: bool) -> ScheduledRequest:
        """Admit a request, and call ``deliver`` later: once, or for every event if it is ``streamed``."""
        check_rows(rows, params, self._shape)
        loop, now = self._running_loop(), self._clock()
        request = ScheduledRequest(rows, params, streamed=streamed, arrived=now)
        try:
            self._check_serving()
            self._admission.admit(request, now)
        except IgnError as exc:
            self._observer.rejected(exc.error_code)
            raise
        self._waiters[request] = deliver
        self._on_admitted(request, now, loop)
        return request

    def begin_many(
        self, calls: Sequence[tuple[FloatRows, SchedulingParams]], deliver: DeliverMany
    ) -> list[ScheduledRequest | IgnError]:
        """Admit several requests, and call ``deliver`` with those that end together."""
        loop, now = self._running_loop(), self._clock()
        for rows, params in calls:
            check_rows(rows, params, self._shape)
        requests = [ScheduledRequest(rows, params, streamed=False, arrived=now) for rows, params in calls]
        try:
            self._check_serving()
            refused = self._admission.admit_many(requests, now)
        except IgnError as exc:
            refused = dict.fromkeys(requests, exc)
        for request in requests:
            if request in refused:
                self._observer.rejected(refused[request].error_code)
            else:
                self._group_waiters[request] = deliver
                self._on_admitted(request, now, loop)
        return [refused.get(request, request) for request in requests]

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # a timer of a loop that was closed never fires
            self._loop, self._timer, self._timer_at = loop, None, math.inf
        return loop

    def _on_admitted(self, request: ScheduledRequest, now: float, loop: asyncio.AbstractEventLoop) -> None:
        if request.deadline < math.inf:
            request.timeout_at = loop.time() + request.deadline - now
            if request.timeout_at < self._timer_at:
                self._set_timer(request.timeout_at)
        if not self._arrivals:
            loop.call_soon(self._flush_arrivals)
        self._arrivals.append(request)

    def _flush_arrivals(self) -> None:
        """Give the workers all requests that arrived in this turn of the event loop.

        If each were given at once, a busy event loop would wake a worker for the first one. The two threads would then
        compete for the interpreter lock while the event loop decodes the other requests.
        """
        arrivals, self._arrivals = self._arrivals, []
        if self._pool.wake_rule:
            self._pool.wake_rule.on_arrivals(len(arrivals))
        self._pool.submit(*arrivals)

    def _check_serving(self) -> None:
        if self._closed:
            raise Draining("the service is shutting down")
        if not self.healthy:
            raise NotReady("the model is not ready")

    def _send_to_loop(self, events: list[tuple[ScheduledRequest, Event]]) -> None:
        """Called by workers: deliver the events of a step on the event loop."""
        self._call_on_loop(partial(self._dispatch, events))

    def _on_device_lost(self, on_all_devices_lost: Callable[[], None], remaining: int) -> None:
        """Called by the worker whose device is lost."""
        self._observer.device_lost()
        if remaining == 0:
            self._call_on_loop(on_all_devices_lost)

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                self._loop.call_soon_threadsafe(callback)

    def _dispatch(self, events: list[tuple[ScheduledRequest, Event]]) -> None:
        together: dict[DeliverMany, list[tuple[ScheduledRequest, Event]]] = {}
        for request, event in events:
            if deliver_many := self._group_waiters.pop(request, None):
                together.setdefault(deliver_many, []).append((request, event))
                continue
            is_last = isinstance(event, Result | IgnError)
            if deliver := self._waiters.pop(request, None) if is_last else self._waiters.get(request):
                deliver(event)  # without one the caller has gone
        for deliver_many, ended in together.items():
            deliver_many(ended)

    def _set_timer(self, at: float) -> None:
        """Look at the deadlines at this time of the event loop; infinity: at no time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if self._loop is None or at == math.inf else self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        """Fail the requests whose deadline has passed; for one that is streamed, the first event ends its deadline."""
        now = 0.0 if self._loop is None else self._loop.time() + _TIMER_S
        for request in [r for r in self._open() if r.timeout_at <= now and r.expires < math.inf]:
            self._fail(request, DeadlineExceeded("the deadline passed"))
        self._set_timer(min((r.timeout_at for r in self._open() if r.expires < math.inf), default=math.inf))

    def _open(self) -> list[ScheduledRequest]:
        return [*self._waiters, *self._group_waiters]

    def _fail_all(self) -> None:
        self._set_timer(math.inf)
        for request in self._open():
            self._fail(request, Draining("the service is shutting down"))

    def _fail(self, request: ScheduledRequest, error: IgnError) -> None:
        """Close a request with an error, unless a worker has closed it: then its outcome is on the way."""
        if self._admission.close(request) is None:
            return
        self._pool.submit(request)
        self._observer.finished(*request.finished(error, self._clock()))
        self._dispatch([(request, error)])

    def cancel(self, handle: ScheduledRequest) -> None:
        """End a request whose caller has gone; does nothing after its last event."""
        request = handle
        if self._waiters.pop(request, None) is None and self._group_waiters.pop(request, None) is None:
            return
        open_rows = self._admission.close(request)
        if open_rows is not None:
            self._pool.submit(request)
            self._observer.cancelled(open_rows)
            if request.params.observer is not None:
                request.params.observer.scheduled(request.arrived, request.started, self._clock(), "cancelled")
