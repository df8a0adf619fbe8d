"""The scheduler: step-level continuous batching of repeated applications of f.

After every step finished and converged rows leave the batch, waiting rows join, and the others
continue. So a request of 1 000 steps never holds up one of 1 step.

All of it belongs to the event loop but `service.scheduling.lane`, one thread for each model
instance, or two on a CPU:

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

from service.domain.errors import DeadlineExceeded, Draining, IgnError, NotReady
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, Model, ModelMemory, largest_batch
from service.domain.tasks import (
    Result,
    SchedulingParams,
    StepOutput,
    StreamProgress,
)
from service.scheduling.admission import Admission
from service.scheduling.lane import Clock, Lane
from service.scheduling.queue import BatchFormer
from service.scheduling.report import OnBatch, Report
from service.scheduling.request import (
    Batch,
    Events,
    OnEvents,
    ScheduledRequest,
    model_failure,
)

logger = logging.getLogger(__name__)

_TIMER_S: Final = 0.002  # a timer of the event loop may be early by so much
_PROGRESS_S: Final = 0.5  # between two progress events of a stream


class Scheduler:
    """Applies one model to the rows of many requests at a time. Belongs to the event loop that
    makes it, unless a method says more.

    Each of the ``models``, one for each device, is called from one thread only; with
    ``has_second`` the first one from two at a time while requests of many rows wait. Its largest
    bucket may lower ``max_batch_rows``. At most ``queue_rows`` rows may wait, those in a batch not
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
        on_batch: OnBatch | None = None,
        memory: ModelMemory | None = None,
        exact: bool = False,
        overlaps: bool = True,
        has_second: bool = False,
    ) -> None:
        self._clock = clock
        self._exact = exact
        self._observe = observe
        self._report = Report()  # of this turn
        batches = (largest_batch(model, max_batch_rows) for model in models)
        self._admission = Admission(queue_rows, *batches, max_rows=max_rows, memory=memory)
        self._max_rows = max_rows
        self._on_batch = on_batch
        self._on_all_lost = on_all_devices_lost

        def on_delivery(lane: Lane) -> None:  # its thread calls it
            self._call_on_loop(partial(self._on_deliveries, lane))

        self._lanes = [
            Lane(models[each], self._admission.limits[each], clock, on_delivery, memory, each)
            for each in [*range(len(models)), *([0] if has_second else [])]
        ]
        self._former = BatchFormer(self._lanes, len(models), overlaps=overlaps)
        self._next_progress = 0.0
        # why the last device was lost, so that only a new process can use the model again
        self.device_error = ""
        self._open: dict[ScheduledRequest, OnEvents] = {}
        self._arrivals: list[ScheduledRequest] = []  # of this turn of the event loop
        self._outbox: Events = []
        # One timer for all deadlines: one for each request would cost more than the scan when it
        # fires.
        self._timer: asyncio.TimerHandle | None = None
        self._earliest = math.inf  # deadline of those requests
        self._loop = asyncio.get_running_loop()
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether it can serve: it is not closed, and has a device left."""
        return not self._closed and bool(self._former.lanes)

    @property
    def batch_rows(self) -> int:
        """Rows of the largest batch now, at most those of a request; 1 without a device."""
        return max(1, min(self._max_rows, *self._admission.limits))

    @property
    def rows_queued(self) -> int:
        """Rows admitted, unfinished and in no batch that runs. May be read from any thread."""
        return self._admission.total.waiting

    def close(self, seconds: float = 5.0) -> None:
        """Fail the open requests with `Draining` and end the threads; wait at most ``seconds`` for
        their current steps. May be called from any thread, so that the event loop goes on.
        """
        self._closed = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # in another thread
            self._call_on_loop(self._fail_all)
        else:
            self._fail_all()
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

        Raises `QueueFull`, `Draining` if closed, or `NotReady` without a device.
        """
        try:
            self._check_serving()
            self._admission.reserve(rows, key, self._clock())
        except IgnError as exc:
            self._report.rejected.append(exc.error_code)
            self._publish()
            raise
        try:
            yield
        finally:
            self._admission.reserve(-rows, key, 0.0)

    def submit(
        self, requests: Sequence[tuple[FloatRows, SchedulingParams]], on_events: OnEvents
    ) -> list[ScheduledRequest | IgnError]:
        """Admit the requests of one turn of the event loop together.

        Their rows (N, C, H, W) float32 have the model's shape, and must not change until the last
        event. ``on_events`` is called on the event loop with all events that these requests, and
        others submitted with the same function, have in that turn. With `SchedulingParams.streamed`
        these are recorded steps, the last step of every row, and progress. The last event of every
        request is its `Result` or one of these errors:

        - `DeadlineExceeded`: the deadline passed; rows still in the queue were not run.
        - `ModelFailure`: the model raised, or gave values that are not finite, on one of the rows.
        - `Draining`: closed meanwhile.

        Returns for each request its handle, or the error with which it is rejected: one of
        :meth:`room_for` or of `Admission.admit`. A rejected request has no events.
        """
        now = self._clock()
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
        admitted = [handle for handle in handles if handle not in rejected]
        self._open |= dict.fromkeys(admitted, on_events)
        earliest = min([handle.expires for handle in admitted], default=math.inf)
        if earliest < self._earliest:
            self._set_timer(earliest, now)
        if admitted and not self._arrivals:
            self._loop.call_soon(self._flush_arrivals)
        self._arrivals += admitted
        return [rejected.get(handle, handle) for handle in handles]

    def run(self, rows: FloatRows, params: SchedulingParams) -> "asyncio.Future[Result]":
        """Submit one request; to cancel its future cancels it. Raises the error of a rejection."""
        end: asyncio.Future[Result] = self._loop.create_future()
        (handle,) = self.submit([(rows, params)], partial(_set, end))
        if isinstance(handle, IgnError):
            raise handle
        end.add_done_callback(lambda _: self.cancel(handle))
        return end

    def cancel(self, request: ScheduledRequest) -> None:
        """End a request whose caller has gone; it has no further event. Does nothing after its last
        event.
        """
        rows = request.open.rows
        if self._open.pop(request, None) is None or not self._admission.close([request]):
            return
        self._remove(request)
        self._report.cancelled.append(rows)
        self._publish()
        request.ended("cancelled", self._clock())

    def _flush_arrivals(self) -> None:
        # If each request of a turn were queued at once, the first one would run alone.
        self._former.push([each.begin() for each in self._arrivals if not each.closed])
        self._arrivals = []
        self._give_batches()
        if self._outbox:
            self._dispatch()

    def _give_batches(self) -> None:
        try:
            now = self._clock()
            if self._earliest <= now:
                self._expire(now)
            if not self._closed:
                for batch in self._former.give():
                    self._begin(batch, now)
        except Exception as exc:
            self._on_defect(exc)

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

    def _on_deliveries(self, lane: Lane) -> None:
        while lane.delivered:
            try:
                self._on_delivered(lane, lane.delivered[0])
            except Exception as exc:
                self._on_defect(exc)
            # Last, so that the lane, which delivers more meanwhile, asks for no further call.
            lane.delivered.popleft()
        self._give_batches()
        self._dispatch()

    def _on_defect(self, exc: Exception) -> None:
        # No exception is expected here. Rows may be in no queue and no batch now, and whoever waits
        # for them would wait for ever.
        logger.critical("the scheduler failed, and all its requests with it", exc_info=exc)
        self._fail_with(self._open, "the scheduler failed", exc)

    def _on_delivered(self, lane: Lane, batch: Batch) -> None:
        now = self._clock()
        lane.batches.popleft()
        self._report.calls += batch.calls
        if lane.batches:
            self._begin(lane.batches[0], now)
        if lane.limit < self._admission.limits[lane.device]:
            self._admission.set_limit(lane.device, lane.limit)
            self._report.limits.append(lane.limit)
        for piece in batch.slices:
            piece.batch = None
        if batch.death is not None:
            self._on_death(batch, batch.death)
        elif batch.done:
            self._on_steps(batch, now)
        if batch.device_lost is not None:
            self._on_device_lost(lane.device, batch.device_lost)
        self._admission.on_batch_ended(batch)  # of the requests that go on
        self._former.push(batch.slices)
        if now >= self._next_progress:
            self._publish_progress(now)

    def _on_steps(self, batch: Batch, now: float) -> None:
        if self._on_batch is not None:
            observers = [
                piece.request.params.observer for piece in batch.slices for _ in range(piece.count)
            ]
            self._on_batch(observers, batch.began, now, batch.done)
        if batch.failed:
            self._finish(batch.errors())
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
                    finished[request] = request.result
        self._finish(finished)

    def _on_device_lost(self, device: int, cause: DeviceLost) -> None:
        # Its rows are queued again for other devices; without any, all requests fail.
        alive = self._former.lose(device)
        self._report.devices_lost += 1
        logger.critical(
            "a device is lost: %s. It fails every call until a new process starts; %d others go on",
            cause,
            alive,
        )
        if alive:
            self._admission.set_limit(device, 0)
        else:
            self.device_error = str(cause) or type(cause).__name__
            self._fail_with(self._open, "the model failed on this row", cause)
            self._on_all_lost()

    def _on_death(self, batch: Batch, cause: BaseException) -> None:
        logger.critical("a worker's thread died; another one replaces it", exc_info=cause)
        batch.death = cause = cause.with_traceback(None)
        self._fail_with([piece.request for piece in batch.slices], "the model failed", cause)
        self._report.workers_replaced += 1

    def _emit(
        self, outputs: Sequence[tuple[ScheduledRequest, StepOutput | StreamProgress]]
    ) -> None:
        for request, event in outputs:
            if request.params.streamed:
                # a stream's deadline bounds the wait for its first event only
                request.expires = math.inf
                self._outbox.append((request, event))

    def _publish_progress(self, now: float) -> None:
        self._next_progress = now + _PROGRESS_S
        running = [each for each in self._open if each.params.streamed and each.started is not None]
        self._emit([(each, each.progress()) for each in running])

    def _finish(self, outcomes: Mapping[ScheduledRequest, Result | IgnError]) -> None:
        """Close requests with their outcomes, unless they are closed already."""
        if not outcomes or not (closed := self._admission.close(outcomes)):
            return
        now = self._clock()
        self._outbox += [(request, outcomes[request]) for request in closed]
        for request in closed:
            outcome = outcomes[request]
            code = outcome.error_code if isinstance(outcome, IgnError) else "ok"
            self._report.finished.append(request.ended(code, now))
            step_params = request.params.step_params
            if step_params.tolerance is not None and isinstance(outcome, Result):
                self._report.early_exits += int((outcome.steps < step_params.steps).sum())
            self._remove(request)

    def _remove(self, request: ScheduledRequest) -> None:
        """Remove a closed request from the queue, and stop batches that run for it."""
        if request.rows_left:
            self._former.remove(request)
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
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
            self._loop.call_soon_threadsafe(callback)

    def _publish(self) -> None:
        report = self._report
        self._report = Report()
        try:
            self._observe(report)
        except Exception:  # whoever waits for events must get them
            logger.exception("what happened in the scheduler was not counted")

    def _dispatch(self) -> None:
        self._publish()
        together = dict[OnEvents, Events]()
        for request, event in self._outbox:
            is_last = isinstance(event, Result | IgnError)
            if on_events := self._open.pop(request, None) if is_last else self._open.get(request):
                # without one the caller has gone
                together.setdefault(on_events, []).append((request, event))
        self._outbox = []
        for on_events, pairs in together.items():
            try:
                on_events(pairs)
            except Exception:  # the others must hear theirs
                logger.exception("the events of a request were not taken")

    def _set_timer(self, earliest: float, now: float) -> None:
        self._earliest = earliest
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if earliest < math.inf:
            self._timer = self._loop.call_later(earliest - now, self._on_timer)

    def _on_timer(self) -> None:
        self._expire(self._clock())
        self._dispatch()

    def _expire(self, now: float) -> None:
        # The first event of a streamed request ends its deadline.
        late = [each for each in self._open if each.expires <= now + _TIMER_S]
        self._finish({each: DeadlineExceeded("the deadline passed") for each in late})
        earliest = min((each.expires for each in self._open if not each.closed), default=math.inf)
        self._set_timer(earliest, now)

    def _fail_with(
        self, requests: Iterable[ScheduledRequest], text: str, cause: BaseException | None
    ) -> None:
        self._finish({request: model_failure(text, cause) for request in requests})

    def _fail_all(self) -> None:
        self._set_timer(math.inf, 0.0)
        self._finish({each: Draining("the service is shutting down") for each in self._open})
        self._dispatch()


def _set(end: "asyncio.Future[Result]", events: Events) -> None:
    event = events[-1][1]
    if end.done():  # it is being cancelled
        return
    if isinstance(event, IgnError):
        end.set_exception(event)
    elif isinstance(event, Result):  # without `streamed` there is no other event
        end.set_result(event)
