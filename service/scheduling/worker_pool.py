"""The state that the workers of one model share: the inbox, the queue, the batches, and the events to publish.

There is one worker for each model instance, and one queue for all of them. Workers take turns under one lock while they
form batches and record results. No worker holds it during a model call, so the devices compute at the same time.
"""

import os
import threading
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from service.domain.errors import IgnError
from service.domain.tasks import RequestObserver, Result, StepOutput, StreamProgress
from service.scheduling.admission import Admission
from service.scheduling.batch import RunningBatch
from service.scheduling.observer import SchedulerObserver
from service.scheduling.queue import FairQueue
from service.scheduling.request import Event, Row, ScheduledRequest
from service.scheduling.wake_rule import WakeRule

_PROGRESS_S: Final = 0.5  # between two progress events of a stream
_CAN_YIELD: Final = hasattr(os, "sched_yield")
_MANY_STEPS: Final = 4  # mean number of steps per open row above which even one row is worth waking a worker

Clock = Callable[[], float]
OnBatch = Callable[[Sequence[RequestObserver | None], float, float, int], None]
"""Called by a worker after it ran a batch, with the observers of its rows, the times at which the batch was formed and
ended, and the number of steps that every row took."""
Publish = Callable[[list[tuple[ScheduledRequest, Event]]], None]


class WorkerPool:
    """One queue and the workers that serve it.

    Thread rules. The event loop calls `submit` and `stop`. Workers call `wait_for_work`, `publish_events` and
    `yield_core` without holding `lock`, and may read `inbox`, `stopped`, `alive_devices` and `queue.row_count` without
    it. Everything else needs `lock`.

    Args:
        admission: the counters of the same model.
        clock: monotonic seconds.
        observer: receives what metrics count.
        publish: called with events in their order, by a worker that holds `lock`.
        on_device_lost: called with the number of remaining devices when one fails, by a worker that holds `lock`.
        devices: number of model instances, each with one worker. On a CPU, an instance stands for a device.
        wake_rule: how many waiting rows are worth a further worker; None: any row is. If the open rows have more than
            `_MANY_STEPS` steps left on average, any row is in either case.
        on_batch: called after each batch; None where nobody wants to know.
    """

    def __init__(
        self,
        admission: Admission,
        clock: Clock,
        observer: SchedulerObserver,
        publish: Publish,
        *,
        on_device_lost: Callable[[int], None] = lambda remaining: None,
        devices: int = 1,
        wake_rule: WakeRule | None = None,
        on_batch: OnBatch | None = None,
    ) -> None:
        self.admission, self.clock, self.observer, self.on_batch = admission, clock, observer, on_batch
        self.lock = threading.Lock()
        self.inbox: deque[ScheduledRequest] = deque()
        """New requests, and closed ones that are to be removed. Appending and popping are atomic."""
        self.queue = FairQueue()
        self.batches: dict[int, RunningBatch] = {}
        """The batch of each worker, by the worker's index."""
        self.alive_devices = devices
        """Devices that are not lost."""
        self.device_error = ""
        """Why the latest device was lost."""
        self.stopped = False
        """Whether every worker is to end."""
        self._publish, self._on_device_lost = publish, on_device_lost
        self.wake_rule = wake_rule
        self._events: list[tuple[ScheduledRequest, Event]] = []
        self._open: set[ScheduledRequest] = set()
        self._progress_subscribers: set[ScheduledRequest] = set()
        self._next_progress = 0.0
        # This lock guards the sleepers and the counter below. It is taken inside `lock`, never the other way round.
        self._wake = threading.Lock()
        self._conditions = [threading.Condition(self._wake) for _ in range(devices)]
        self._sleepers: list[int] = []  # workers that wait and have not been notified, in ascending order
        self._waking_workers = 0  # workers notified of new requests that have not formed a batch since

    @property
    def idle_workers(self) -> int:
        """Number of workers that wait and have not been notified. May be read without a lock."""
        return len(self._sleepers)

    def submit(self, requests: Iterable[ScheduledRequest]) -> None:
        """Hand over requests: open ones are run, closed ones are removed.

        Wakes as many idle workers as the waiting rows are worth, less those that are on their way; at least one if all
        are idle.
        """
        self.inbox.extend(requests)
        with self._wake:
            if self._sleepers:
                wanted = self.admission.waiting // self._min_rows() - self._waking_workers
                all_idle = len(self._sleepers) == self.alive_devices
                self._waking_workers += self._wake_workers(max(wanted, int(all_idle)))

    def stop(self) -> None:
        """Make every worker end after its current step."""
        self.stopped = True
        with self._wake:
            self._wake_workers(len(self._sleepers))

    def wait_for_work(self, index: int) -> bool:
        """Wait until there is something to do for the worker with this index; returns whether it slept."""
        woken = False
        if not self._has_work():  # without the lock: whoever adds work notifies idle workers afterwards
            with self._wake:
                while not self._has_work():
                    woken = True
                    insort(self._sleepers, index)
                    self._conditions[index].wait()  # `_wake_workers` has taken this worker out of the sleepers
                    if not self._has_work():  # another worker took the rows
                        self._waking_workers = max(0, self._waking_workers - 1)
        return woken

    def rows_for_worker(self, limit: int, rows: int, *, woken: bool) -> int:
        """How many of the waiting ``rows`` a worker takes: an equal share if others are idle, else up to its ``limit``.

        Workers that were notified and have not formed a batch yet count as idle, because waking a thread can take
        longer than a model call. A share is reserved for each of them once: if the worker is still not running at the
        next call, other workers get its rows. ``woken``: the caller is one of the notified workers.
        """
        if self.alive_devices == 1:
            return limit
        with self._wake:
            others, self._waking_workers = len(self._sleepers) + max(0, self._waking_workers - woken), 0
        share = -(-rows // (others + 1))  # rounded up
        return min(limit, max(self._min_rows(), share))

    def should_split(self, rows: int) -> bool:
        """Whether a batch of so many unfinished rows is to be divided with an idle worker."""
        return bool(self._sleepers) and rows >= 2 * self._min_rows()

    def wake_others(self, *, at_least_one: bool = False) -> None:
        """Wake idle workers for the rows left in the queue. ``at_least_one``: whatever their number, if there are any.

        Needed by a worker that cannot take these rows itself: its batch is full, or its device is lost.
        """
        if len(self.batches) > 1 and self.queue.row_count:
            with self._wake:
                self._wake_workers(max(self.queue.row_count // self._min_rows(), int(at_least_one)))

    def yield_core(self) -> None:
        """While several workers are awake, give up the core once: they could keep the event loop from running."""
        if self.alive_devices - len(self._sleepers) > 1 and _CAN_YIELD:
            os.sched_yield()

    def take_arrivals(self) -> list[ScheduledRequest]:
        """Empty the inbox; returns the new requests. Closed ones are removed."""
        arrived = list[ScheduledRequest]()
        while self.inbox:
            request = self.inbox.popleft()
            if request.closed:
                self.remove(request)
            else:
                self._open.add(request)
                arrived.append(request)
        return arrived

    def enqueue(self, requests: Iterable[ScheduledRequest]) -> None:
        """Queue the rows of requests, unless they have been closed meanwhile."""
        for request in requests:
            if request.closed:
                continue
            if request.params.streamed:
                self._progress_subscribers.add(request)
            for row in request.rows:
                self.queue.push(row)

    def mark_device_lost(self, reason: str) -> None:
        """Count one device less; ``reason`` is what its runtime said, in one line."""
        self.alive_devices -= 1
        self.device_error = reason
        self._on_device_lost(self.alive_devices)

    def requeue(self, rows: Iterable[Row]) -> None:
        """Queue unfinished rows again that were removed from a batch."""
        waiting = [row for row in rows if not row.request.closed]
        self.admission.on_rows_moved(waiting, (), self.clock())
        for row in waiting:
            self.queue.push(row)

    def emit(self, request: ScheduledRequest, event: StepOutput | StreamProgress) -> None:
        """Publish a step or the progress of a streamed request with the next events."""
        if request.params.streamed:
            request.expires = float("inf")  # a stream's deadline bounds the wait for its first event only
            self._events.append((request, event))

    def finish(self, outcomes: Mapping[ScheduledRequest, Result | IgnError]) -> None:
        """Close requests with their outcomes, unless the event loop has closed them already."""
        closed = self.admission.close(outcomes)
        if closed:
            now = self.clock()
            self._events += [(request, outcomes[request]) for request in closed]
            self.observer.finished([request.finished(outcomes[request], now) for request in closed])
        for request in closed:
            outcome, step_params = outcomes[request], request.params.step_params
            if step_params.tolerance is not None and isinstance(outcome, Result):
                early = int(np.count_nonzero(outcome.steps < step_params.steps))
                if early:
                    self.observer.early_exit(early)
        for request in outcomes:
            self.remove(request)

    def remove(self, request: ScheduledRequest) -> None:
        """Remove a closed request from the queue and the sets, and have batches with rows of it rebuilt."""
        self._open.discard(request)
        self._progress_subscribers.discard(request)
        if request.rows_left:  # done rows are in no queue, and leave their batch by themselves
            self.queue.remove(request)
            if any(row.batch_index >= 0 and not row.done for row in request.rows):
                for batch in self.batches.values():
                    batch.needs_rebuild = True
        request.drop_rows()

    def publish_progress(self, now: float) -> None:
        """Emit the progress of every stream that asked for it, every `_PROGRESS_S` seconds."""
        if not self._progress_subscribers or now < self._next_progress:
            return
        self._next_progress = now + _PROGRESS_S
        for request in self._progress_subscribers:
            if request.started is not None:
                self.emit(request, request.progress())

    def fail(
        self, requests: set[ScheduledRequest] | None, make_error: Callable[[], IgnError]
    ) -> list[tuple[ScheduledRequest, IgnError]]:
        """Close requests after a worker died, and rebuild the queue from the others. Reports nothing to the observer.

        Args:
            requests: those to close; None for all.
            make_error: makes the error for each.

        Returns:
            The requests that this call has closed, with their errors.
        """
        requests = set(self._open) if requests is None else requests
        failed = [(request, make_error()) for request in self.admission.close(requests)]
        self._events.extend(failed)
        self._open -= requests
        self._progress_subscribers -= requests
        # The worker may have died in the middle of a change to the queue, so nothing of the old queue is reused.
        in_a_batch = {row for batch in self.batches.values() for row in batch.rows}
        whole = {request for batch in self.batches.values() for request in batch.requests}
        self.queue = FairQueue()
        for request in self._open - whole:
            for row in request.rows:
                if not row.done and row not in in_a_batch:
                    self.queue.push(row)
        for batch in self.batches.values():
            batch.needs_rebuild = True
        return failed

    def publish_events(self) -> None:
        """Publish the collected events, of whichever worker; the lock keeps them in order."""
        if self._events:
            with self.lock:
                events, self._events = self._events, []
                if events:
                    self._publish(events)

    def _min_rows(self) -> int:
        """Fewest rows that are worth waking another worker; 1 if the open rows have many steps left."""
        total = self.admission.total
        if self.wake_rule is None or total.steps > _MANY_STEPS * total.rows:
            return 1
        return self.wake_rule.min_rows(len(self._open) + len(self.inbox), total.rows)

    def _wake_workers(self, count: int) -> int:
        """Notify so many idle workers, or all if there are fewer; returns how many. The caller holds `_wake`.

        The lowest index comes first: the worker that ran last has its code and weights in the core's cache.
        """
        woken, self._sleepers = self._sleepers[:count], self._sleepers[count:]
        for index in woken:
            self._conditions[index].notify()
        return len(woken)

    def _has_work(self) -> bool:
        return self.stopped or bool(self.inbox) or self.queue.row_count > 0
