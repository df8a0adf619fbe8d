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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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


@dataclass(slots=True, eq=False)
class _Waiter:
    """A caller on the event loop that waits for the events of a request."""

    deliver: Deliver
    timer: asyncio.TimerHandle | None = None  # of the deadline, until the first event


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
        self._waiters: dict[ScheduledRequest, _Waiter] = {}
        self._arrivals: list[ScheduledRequest] = []  # of this turn of the event loop
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
        try:
            self._check_serving()
            self._admission.check_capacity(rows)
        except IgnError as exc:
            self._observer.rejected(exc.error_code)
            raise

    def begin(self, rows: FloatRows, params: SchedulingParams, deliver: Deliver, *, streamed: bool) -> ScheduledRequest:
        """Admit a request, and call ``deliver`` later: once, or for every event if it is ``streamed``."""
        check_rows(rows, params, self._shape)
        now = self._clock()
        request = ScheduledRequest(rows, params, streamed=streamed, arrived=now)
        try:
            self._check_serving()
            self._admission.admit(request, now)
        except IgnError as exc:
            self._observer.rejected(exc.error_code)
            raise
        self._loop = asyncio.get_running_loop()
        waiter = self._waiters[request] = _Waiter(deliver)
        if params.deadline is not None:
            waiter.timer = self._loop.call_later(params.deadline - now, self._on_timeout, request)
        if not self._arrivals:
            self._loop.call_soon(self._flush_arrivals)
        self._arrivals.append(request)
        return request

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
        for request, event in events:
            waiter = self._waiters.get(request)
            if waiter is None:  # its caller has gone
                continue
            if waiter.timer is not None:
                waiter.timer.cancel()
                waiter.timer = None
            if isinstance(event, Result | IgnError):
                del self._waiters[request]
            waiter.deliver(event)

    def _on_timeout(self, request: ScheduledRequest) -> None:
        if request.expires < math.inf:  # else its first event is on the way
            self._fail(request, DeadlineExceeded("the deadline passed"))

    def _fail_all(self) -> None:
        for request in list(self._waiters):
            self._fail(request, Draining("the service is shutting down"))

    def _fail(self, request: ScheduledRequest, error: IgnError) -> None:
        """Close a request with an error, unless a worker has closed it: then its outcome is on the way."""
        if self._admission.close(request) is None:
            return
        self._pool.submit(request)
        request.report(self._observer, error, self._clock())
        deliver = self._waiters[request].deliver
        self._remove(request)
        deliver(error)

    def cancel(self, handle: ScheduledRequest) -> None:
        """End a request whose caller has gone; does nothing after its last event."""
        if handle not in self._waiters:
            return
        request = handle
        open_rows = self._admission.close(request)
        if open_rows is not None:
            self._pool.submit(request)
            self._observer.cancelled(open_rows)
            if request.params.observer is not None:
                request.params.observer.scheduled(request.arrived, request.started, self._clock(), "cancelled")
        self._remove(request)

    def _remove(self, request: ScheduledRequest) -> None:
        waiter = self._waiters.pop(request)
        if waiter.timer is not None:
            waiter.timer.cancel()
