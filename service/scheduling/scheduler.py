"""The scheduler: step-level continuous batching of repeated applications of f.

After every step finished and converged rows leave the batch, waiting rows join, and the others
continue. So a request of 1 000 steps never holds up one of 1 step.

All of it belongs to the event loop but `service.scheduling.lane`, one thread for each model
instance:

```
  event loop                                                               lanes
  submit ─▶ FairQueue ─▶ batches, two or three with each lane ───────────▶ model
  on_events ◀─ commit ◀─ one call of the event loop for each batch ◀────── rows, mean |y − x|
```

So a lane always has the next batch, while the event loop makes responses of the one before.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from service.domain.errors import DeadlineExceeded, Draining, IgnError, ModelFailure, NotReady
from service.domain.latents import FloatRows
from service.domain.model import Model, ModelMemory, largest_batch
from service.domain.tasks import (
    RequestObserver,
    Result,
    SchedulingParams,
    StepOutput,
    StreamProgress,
)
from service.scheduling.admission import Admission
from service.scheduling.lane import Clock, Lane, model_failure
from service.scheduling.queue import FairQueue
from service.scheduling.report import Report
from service.scheduling.request import (
    Batch,
    Event,
    Events,
    OnEvents,
    ScheduledRequest,
    Slice,
    check_rows,
)

logger = logging.getLogger(__name__)

_TIMER_S: Final = 0.002  # a timer of the event loop may be early by so much
_PROGRESS_S: Final = 0.5  # between two progress events of a stream
_OPEN_BATCHES: Final = 2  # of a GPU, or of tiles: one that runs, and the next one
_MIN_ROWS: Final = 4  # with fewer, a row takes longer on a CPU
# Of the open rows on a CPU: one is with the callers, one with the event loop, and one in the model.
# A lane has at most as many batches, which it runs while the event loop is busy.
_SHARES: Final = 3
_MAX_STEPS: Final = 64  # of a batch, of which the event loop counts each when the batch ends
_MAX_LOGGED_IDS: Final = 16  # of requests, in one line of the log

OnBatch = Callable[[Sequence[RequestObserver | None], float, float, int], None]
"""Called after a batch ran, with the observers of its rows, the times at which it began and ended,
and the number of steps that every row took.
"""


class Scheduler:
    """Applies one model to the rows of many requests at a time. Belongs to one event loop, unless a
    method says more.

    Each of the ``models``, one for each device, is called from one thread only; its largest bucket
    may lower ``max_batch_rows``. At most ``queue_rows`` rows may wait, those in a batch not
    counted, and a request has at most ``max_rows`` rows. Deadlines are times on ``clock``, in
    monotonic seconds. ``on_all_devices_lost`` and ``observe``, with what happened in a turn, are
    called on the event loop. Without ``memory`` the models are always open. ``exact``: as in the
    card. ``overlaps``: whether the event loop has a core beside those of the models. Else a batch
    takes all rows that wait.
    """

    def __init__(
        self,
        *models: Model,
        max_batch_rows: int,
        queue_rows: int,
        max_rows: int = 1,
        clock: Clock = time.monotonic,
        observe: Callable[[Report], None] = lambda _: None,
        on_all_devices_lost: Callable[[], None] = lambda: None,
        prepare_thread: Callable[[], None] = lambda: None,
        on_batch: OnBatch | None = None,
        memory: ModelMemory | None = None,
        exact: bool = False,
        overlaps: bool = True,
    ) -> None:
        self._shares = _SHARES if overlaps else 1
        self._shape = models[0].shape
        self._clock = clock
        self._exact = exact
        self._observe = observe
        self._report = Report()  # of this turn
        batches = (largest_batch(model, max_batch_rows) for model in models)
        self._admission = Admission(queue_rows, *batches, max_rows=max_rows, memory=memory)
        self._max_rows = max_rows
        self._on_batch = on_batch
        self._on_all_lost = on_all_devices_lost
        self._lanes = [
            Lane(model, limit, clock, self._on_delivery, prepare_thread, memory)
            for model, limit in zip(models, self._admission.limits, strict=True)
        ]
        self._alive = [*self._lanes]  # those whose device is not lost
        self._queues = (FairQueue(), FairQueue())  # of requests of one step, and of more
        # whether those of more steps have the next batch, if both wait
        self._is_turn_of_long = False
        self._streamed = set[ScheduledRequest]()
        self._next_progress = 0.0
        # why the last device was lost, so that only a new process can use the model again
        self.device_error = ""
        self._open: dict[ScheduledRequest, OnEvents] = {}
        self._arrivals: list[ScheduledRequest] = []  # of this turn of the event loop
        self._outbox: Events = []
        # One timer for all deadlines: one for each request would cost more than the scan when it
        # fires.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # event loop time
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether it can serve: false before :meth:`start`, while a thread is replaced, and without
        a device left.
        """
        running = [lane for lane in self._alive if lane.is_running]
        return not self._closed and 0 < len(running) == len(self._alive)

    @property
    def batch_rows(self) -> int:
        """Rows of the largest batch that runs now, at most those of a request; 1 without a
        device.
        """
        return max(1, min(self._max_rows, *self._admission.limits))

    @property
    def rows_queued(self) -> int:
        """Rows admitted, unfinished and in no batch that runs. May be read from any thread."""
        return self._admission.waiting

    def start(self) -> None:
        """Start the threads, once."""
        for lane in self._lanes:
            lane.start()

    def close(self, seconds: float = 5.0) -> None:
        """Fail the open requests with `Draining` and end the threads; wait at most ``seconds`` for
        their current steps.

        May be called from any thread. Elsewhere than on the event loop, the wait does not block the
        loop.
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
        until = time.monotonic() + seconds
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join(max(0.0, until - time.monotonic()))

    @contextlib.contextmanager
    def room_for(self, rows: int, key: str) -> Iterator[None]:
        """Reserve places for rows of a caller while the block makes them; submit them directly
        after it.

        For rows that are expensive to make, such as those of large images. Without the reservation,
        every request that arrives meanwhile would find the same room, and most of them would be
        rejected after their rows were made.

        Raises `QueueFull`, `Draining` if closed, or `NotReady` if not started, without a device, or
        while a worker is being replaced.
        """
        with contextlib.ExitStack() as stack:
            try:
                self._check_serving()
                stack.enter_context(self._admission.room_for(rows, key))
            except IgnError as exc:
                self._report.rejected.append(exc.error_code)
                self._publish()
                raise
            yield

    def submit(
        self, requests: Sequence[tuple[FloatRows, SchedulingParams]], on_events: OnEvents
    ) -> list[ScheduledRequest | IgnError]:
        """Admit the requests of one turn of the event loop together.

        Their rows (N, C, H, W) float32 must not change until the last event. ``on_events`` is
        called on the event loop with all events that these requests, and others submitted with the
        same function, have in that turn. With `SchedulingParams.streamed` these are recorded steps,
        the last step of every row, and progress. The last event of every request is its `Result` or
        one of these errors:

        - `DeadlineExceeded`: the deadline passed; rows still in the queue were not run.
        - `ModelFailure`: the model raised, or gave values that are not finite, on one of the rows.
        - `Draining`: closed meanwhile.

        Returns for each request its handle, or the error with which it is rejected: one of
        :meth:`room_for` or of `Admission.admit`. A rejected request has no events. Raises
        ValueError, and admits none, if rows or mask do not fit the model.
        """
        check_rows(requests, self._shape)
        loop = asyncio.get_running_loop()
        now = self._clock()
        if loop is not self._loop:  # a timer of a loop that was closed never fires
            self._loop = loop
            self._timer = None
            self._timer_at = math.inf
        handles = [
            ScheduledRequest(rows, params, arrived=now, exact=self._exact)
            for rows, params in requests
        ]
        try:
            self._check_serving()
            rejected = self._admission.admit(handles, now)
        except IgnError as exc:
            rejected = dict.fromkeys(handles, exc)
        if rejected:
            self._report.rejected += [error.error_code for error in rejected.values()]
            self._publish()
        self._add([handle for handle in handles if handle not in rejected], on_events, now)
        return [rejected.get(handle, handle) for handle in handles]

    async def run(self, rows: FloatRows, params: SchedulingParams) -> Result:
        """Submit one request and wait for its result or error; cancelling the call cancels the
        request.
        """
        return await self.start_run(rows, params).result()

    def start_run(self, rows: FloatRows, params: SchedulingParams) -> "SubmittedRun":
        """Submit one request whose result is awaited later; raises the error with which it is
        rejected.
        """
        return SubmittedRun(self, rows, params)

    def cancel(self, request: ScheduledRequest) -> None:
        """End a request whose caller has gone; it has no further event. Does nothing after its last
        event.
        """
        if self._open.pop(request, None) is None:
            return
        for closed, open_rows in self._admission.close([request]).items():
            self._remove(closed)
            self._report.cancelled.append(open_rows)
            self._publish()
            if closed.params.observer is not None:
                closed.params.observer.scheduled(
                    closed.arrived, closed.started, self._clock(), "cancelled"
                )

    def _add(self, requests: list[ScheduledRequest], on_events: OnEvents, now: float) -> None:
        assert self._loop is not None  # noqa: S101 - set by `submit`
        offset = self._loop.time() - now
        first_deadline = math.inf
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
        # If each request of a turn were queued at once, the first one would run alone.
        arrivals = self._arrivals
        self._arrivals = []
        for request in arrivals:
            if not request.closed:
                if request.params.streamed:
                    self._streamed.add(request)
                self._queue_of(request).push([request.begin()])
        self._give_batches()
        if self._outbox:
            self._dispatch()

    def _queue_of(self, request: ScheduledRequest) -> FairQueue:
        # On a CPU a batch takes as long as its rows, so rows of many steps run apart from those of
        # one, in turn. A GPU computes a few rows in the time of one.
        return self._queues[request.row_steps > 1 and not self._lanes[0].has_buckets]

    def _give_batches(self) -> None:
        """Give waiting rows to the lanes with the fewest batches."""
        while self._queues[0].row_count or self._queues[1].row_count:
            lane = min(self._alive, key=lambda lane: len(lane.batches), default=None)
            if lane is None or self._closed:
                return
            if len(lane.batches) >= (
                _OPEN_BATCHES if lane.has_buckets or lane.limit == 1 else self._shares
            ):
                return
            is_long = not self._queues[0].row_count or (
                self._is_turn_of_long and self._queues[1].row_count > 0
            )
            self._is_turn_of_long = not is_long
            now = self._clock()
            slices, expired = self._queues[is_long].take(self._places(lane, is_long=is_long), now)
            if expired:
                late = "the deadline passed while waiting"
                self._finish({request: DeadlineExceeded(late) for request in expired})
            if slices:
                self._give(lane, slices, now)

    def _places(self, lane: Lane, *, is_long: bool) -> int:
        # Rows of many steps and those of a GPU are divided between the lanes that have nothing. Of
        # others a lane gets a share of those that are open, so that the model, the event loop and
        # the callers all work.
        waiting = self._queues[is_long].row_count
        alive = self._alive
        if is_long or lane.has_buckets:
            idle = sum(not each.batches for each in alive)
            return min(lane.limit, -(-waiting // max(1, idle)))
        waiting += sum([batch.rows for each in alive for batch in each.batches])
        return min(lane.limit, max(_MIN_ROWS, -(-waiting // (self._shares * len(alive)))))

    def _give(self, lane: Lane, slices: list[Slice], now: float) -> None:
        rows = sum([piece.count for piece in slices])
        is_rest = not (self._queues[0].row_count or self._queues[1].row_count)
        batch = Batch(
            slices=slices,
            rows=rows,
            steps=min(_MAX_STEPS, *[piece.steps_to_next_check() for piece in slices]),
            expires=min([piece.request.expires for piece in slices]),
            reason="full" if rows >= lane.limit else "drained" if is_rest else "share",
        )
        for piece in slices:
            piece.batch = batch
        lane.give(batch)
        if len(lane.batches) == 1:
            self._begin(batch, now)

    def _begin(self, batch: Batch, now: float) -> None:
        # All batches before this one have been delivered, so it runs now.
        self._admission.on_batch_began(batch.slices, now)
        for piece in batch.slices:
            request = piece.request
            if request.started is None:
                request.started = now
            if (
                piece.steps == 0
                and not (request.is_plain or request.closed)
                and piece.is_recorded()
            ):
                self._emit([(request, output) for output in piece.record(None)])

    def _on_delivery(self, lane: Lane) -> None:
        self._call_on_loop(partial(self._on_deliveries, lane))  # the thread of the lane calls it

    def _on_deliveries(self, lane: Lane) -> None:
        while lane.delivered:
            try:
                self._on_delivered(lane, lane.delivered[0])
            finally:
                # Last, so that the lane, which delivers more meanwhile, asks for no further call.
                lane.delivered.popleft()
        self._give_batches()
        self._dispatch()

    def _on_delivered(self, lane: Lane, batch: Batch) -> None:
        now = self._clock()
        index = self._lanes.index(lane)
        lane.batches.popleft()
        self._report.calls += batch.calls
        self._admission.on_batch_ended(batch)
        if lane.batches:
            self._begin(lane.batches[0], now)
        if batch.limit != self._admission.limits[index] and not lane.is_lost:
            self._admission.set_limit(index, batch.limit)
            self._report.limits.append(batch.limit)
        for piece in batch.slices:
            piece.batch = None
        if batch.death is not None:
            self._on_death(lane, batch, batch.death)
        elif batch.done:
            self._on_steps(lane, batch, now)
        self._requeue(batch.slices)
        if self._streamed:
            self._publish_progress(now)

    def _on_steps(self, lane: Lane, batch: Batch, now: float) -> None:
        if self._on_batch is not None:
            observers = [
                piece.request.params.observer for piece in batch.slices for _ in range(piece.count)
            ]
            self._on_batch(observers, batch.began, now, batch.done)
        if batch.failed:
            self._fail_rows(batch)
        if batch.device_lost is not None:
            self._on_device_lost(lane, batch)
        if outputs := batch.commit():
            self._emit(outputs)
        finished = dict[ScheduledRequest, Result | IgnError]()
        for piece in batch.slices:
            if piece.done:
                request = piece.request
                request.rows_left -= piece.count
                if request.rows_left:
                    self._admission.on_rows_done(piece)
                else:  # closing it counts all that is left
                    finished[request] = request.result(now)
        self._finish(finished)

    def _fail_rows(self, batch: Batch) -> None:
        errors = list[tuple[ScheduledRequest, IgnError]]()
        at = 0
        for piece in batch.slices:
            for index in range(piece.count):
                # Nobody waits for rows of closed requests.
                if at + index in batch.failed and not piece.request.closed:
                    error = batch.failed[at + index] or piece.not_finite_error(index, batch.done)
                    errors.append((piece.request, error))
            at += piece.count
        # of a request with several failed rows the first is told
        self._finish(dict(reversed(errors)))
        # One line for each cause.
        causes = [
            (request, error.reason) for request, error in errors if isinstance(error, ModelFailure)
        ]
        for reason in dict.fromkeys(reason for _, reason in causes):
            rows = [request for request, cause in causes if cause == reason]
            logger.error(
                "the model failed on %d of %d rows: %s%s",
                len(rows),
                batch.rows,
                reason,
                _request_ids(rows),
            )

    def _on_device_lost(self, lane: Lane, batch: Batch) -> None:
        # Its rows are queued again for other devices; without any, all requests fail.
        self._alive = [each for each in self._lanes if not each.is_lost]
        alive = len(self._alive)
        cause = batch.device_lost
        self._report.devices_lost += 1
        logger.critical(
            "a device is lost: %s. It fails every call until this process is started anew%s%s",
            cause,
            f"; others go on, {alive} of them" if alive else "",
            _request_ids(piece.request for piece in batch.slices),
        )
        if alive:
            self._admission.set_limit(self._lanes.index(lane), 0)
        else:
            self.device_error = str(cause) or type(cause).__name__
            self._finish(
                {each: model_failure("the model failed on this row", cause) for each in self._open}
            )
            self._on_all_lost()

    def _on_death(self, lane: Lane, batch: Batch, cause: BaseException) -> None:
        logger.critical("a worker's thread died; another one replaces it", exc_info=cause)
        batch.death = cause = cause.with_traceback(None)
        self._finish(
            {piece.request: model_failure("the model failed", cause) for piece in batch.slices}
        )
        lane.start()
        self._report.workers_replaced += 1

    def _requeue(self, slices: Iterable[Slice]) -> None:
        for piece in slices:
            if not (piece.done or piece.request.closed):
                self._queue_of(piece.request).push([piece])

    def _emit(
        self, outputs: Sequence[tuple[ScheduledRequest, StepOutput | StreamProgress]]
    ) -> None:
        for request, event in outputs:
            if request.params.streamed:
                # a stream's deadline bounds the wait for its first event only
                request.expires = math.inf
                self._outbox.append((request, event))

    def _publish_progress(self, now: float) -> None:
        if now >= self._next_progress:
            self._next_progress = now + _PROGRESS_S
            self._emit(
                [(each, each.progress()) for each in self._streamed if each.started is not None]
            )

    def _finish(self, outcomes: Mapping[ScheduledRequest, Result | IgnError]) -> None:
        """Close requests with their outcomes, unless they are closed already."""
        if not outcomes or not (closed := self._admission.close(outcomes)):
            return
        now = self._clock()
        self._outbox += [(request, outcomes[request]) for request in closed]
        self._report.finished += [request.finished(outcomes[request], now) for request in closed]
        for request in closed:
            outcome = outcomes[request]
            step_params = request.params.step_params
            if step_params.tolerance is not None and isinstance(outcome, Result):
                self._report.early_exits += int((outcome.steps < step_params.steps).sum())
            self._remove(request)

    def _remove(self, request: ScheduledRequest) -> None:
        """Remove a closed request from the queue, and stop batches that run for it."""
        self._streamed.discard(request)
        if request.rows_left:
            self._queue_of(request).remove(request)
            for batch in {piece.batch for piece in request.slices if piece.batch is not None}:
                batch.is_stopped = batch.steps > 1 or all(
                    piece.request.closed for piece in batch.slices
                )
        request.slices = []  # breaks the reference cycle, so that no garbage collection is needed

    def _check_serving(self) -> None:
        if self._closed:
            raise Draining("the service is shutting down")
        if not self.healthy:
            raise NotReady("the model is not ready")

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                self._loop.call_soon_threadsafe(callback)

    def _publish(self) -> None:
        report = self._report
        self._report = Report()
        self._observe(report)

    def _dispatch(self) -> None:
        self._publish()
        events, self._outbox, together = self._outbox, [], dict[OnEvents, Events]()
        for request, event in events:
            is_last = isinstance(event, Result | IgnError)
            if on_events := self._open.pop(request, None) if is_last else self._open.get(request):
                # without one the caller has gone
                together.setdefault(on_events, []).append((request, event))
        for on_events, pairs in together.items():
            on_events(pairs)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = (
            None if self._loop is None or at == math.inf else self._loop.call_at(at, self._on_timer)
        )

    def _on_timer(self) -> None:
        # The first event of a streamed request ends its deadline.
        now = 0.0 if self._loop is None else self._loop.time() + _TIMER_S
        late = [
            request
            for request in self._open
            if request.timeout_at <= now and request.expires < math.inf
        ]
        self._fail(late, "the deadline passed", DeadlineExceeded)
        self._set_timer(
            min((r.timeout_at for r in self._open if r.expires < math.inf), default=math.inf)
        )

    def _fail_all(self) -> None:
        self._set_timer(math.inf)
        self._fail([*self._open], "the service is shutting down", Draining)

    def _fail(self, requests: list[ScheduledRequest], text: str, kind: type[IgnError]) -> None:
        self._finish({request: kind(text) for request in requests})
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


def _request_ids(requests: Iterable[ScheduledRequest]) -> str:
    ids = [
        name for name in dict.fromkeys(request.params.request_id for request in requests) if name
    ]
    more = f" and {len(ids) - _MAX_LOGGED_IDS} more" if len(ids) > _MAX_LOGGED_IDS else ""
    return f"; requests {', '.join(ids[:_MAX_LOGGED_IDS])}{more}" if ids else ""
