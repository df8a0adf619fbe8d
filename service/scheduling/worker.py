"""Workers: one thread for each model instance, which forms a batch before every step and runs it; and what they share.

A worker waits only while there is nothing to do. It never waits for more rows: a batch is what is there.
"""

import logging
import os
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from service.domain.errors import DeadlineExceeded, IgnError, ModelFailure
from service.domain.model import Model, ModelMemory
from service.domain.tasks import RequestObserver, Result, StepOutput, StreamProgress
from service.scheduling.admission import Admission
from service.scheduling.batch import RunningBatch, model_failure
from service.scheduling.observer import SchedulerObserver
from service.scheduling.queue import FairQueue
from service.scheduling.request import Events, OnEvents, Outputs, ScheduledRequest, Slice

logger = logging.getLogger(__name__)

_PROGRESS_S: Final = 0.5  # between two progress events of a stream
_MAX_UNOBSERVED_S: Final = 0.25  # longest run of unobserved steps; progress events are promised every second
_CAN_YIELD: Final = hasattr(os, "sched_yield")
_MANY_STEPS: Final = 4  # mean number of steps per open row above which even one row is worth waking a worker
_MAX_LOGGED_IDS: Final = 16  # of requests, in one line of the log

_MIN_ROWS: Final = 16  # with fewer rows, two batches cost more CPU time than one saves
_SHARED_CORE_MIN_ROWS: Final = 64  # the same where a further worker takes CPU time from the event loop
_MODEL_BOUND: Final = 4.0  # ratio of the CPU times of workers and event loop from which sharing its core pays
_SMOOTHING: Final = 0.05  # weight of the newest measurement
_MAX_GAP_S: Final = 0.1  # longest time between arrivals that is measured: an idle event loop does other work, too
_NEVER: Final = 1 << 30

Clock = Callable[[], float]
OnBatch = Callable[[Sequence[RequestObserver | None], float, float, int], None]
"""Called by a worker after it ran a batch, with the observers of its rows, the times at which the batch was formed and
ended, and the number of steps that every row took."""


class WakeRule:
    """Measures the CPU time of the event loop and of the workers, and decides how many rows are worth another worker.

    That are ``min_rows`` waiting rows of few steps, or ``shared_min_rows`` while workers need less than `_MODEL_BOUND`
    times the CPU time of the event loop. ``cpu_clock`` gives CPU seconds of the calling thread.
    """

    # If the event loop needs more CPU time for a request than a worker needs for its rows, a second worker does not
    # raise the number of requests per second. It only makes batches smaller and, where it shares the event loop's core,
    # takes time from the loop.

    def __init__(
        self,
        min_rows: int = _MIN_ROWS,
        *,
        shared_min_rows: int | None = None,
        cpu_clock: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cpu_clock = cpu_clock
        self._min_rows, self._shared_min_rows, self._clock = min_rows, shared_min_rows or min_rows, clock
        self._seconds_per_request = 0.0  # of the event loop; 0: not measured yet
        self._seconds_per_row = 0.0  # of a worker, for one step of a row
        self._loop_cpu, self._last_arrivals = 0.0, -1.0

    def on_arrivals(self, requests: int) -> None:
        """Measure the event loop. Called in its thread, with the number of requests since the last call."""
        cpu, now = self.cpu_clock(), self._clock()
        if now - self._last_arrivals < _MAX_GAP_S:
            self._seconds_per_request = _smoothed(self._seconds_per_request, (cpu - self._loop_cpu) / requests)
        self._loop_cpu, self._last_arrivals = cpu, now

    def on_steps(self, row_steps: int, cpu_seconds: float) -> None:
        """Learn the CPU time of a worker for so many steps of rows. The caller holds the pool's lock."""
        if row_steps:
            self._seconds_per_row = _smoothed(self._seconds_per_row, cpu_seconds / row_steps)

    def min_rows(self, requests: int, rows: int) -> int:
        """Fewest waiting rows that are worth a further worker, while so many requests with so many rows are open."""
        http, model = self._seconds_per_request * requests, self._seconds_per_row * rows
        if model < http:
            return _NEVER
        return self._min_rows if model >= _MODEL_BOUND * http else self._shared_min_rows


def wake_rule(device: str, instances: int, cores: int) -> WakeRule | None:
    """The rule for a model on ``device``: None on a GPU, whose workers wait most of the time, and for one instance.

    With fewer instances than ``cores``, which the process may use, one core is left to the event loop.
    """
    if device != "cpu" or instances < 2:
        return None
    return WakeRule(shared_min_rows=None if instances < cores else _SHARED_CORE_MIN_ROWS)


def _smoothed(average: float, value: float) -> float:
    return average + _SMOOTHING * (value - average) if average else value


class WorkerPool:
    """What the workers of one model share: the inbox, the queue, the batches, and the events to publish.

    Threads and locks of the whole package:

        lock               taken by                guards
        ─────────────────  ──────────────────────  ──────────────────────────────────────────────────────────────
        WorkerPool.lock    workers                 queue, _open, _streamed, _events; which slices a batch
         │                                         has; `seq` of slices, `started`, `expires`, `rows_left` of requests
         ├▶ WorkerPool._wake     both              sleepers and _waking_workers
         └▶ Admission._lock      both              all `Counters`, the cost model, `closed` of requests

    - An arrow is the order: a thread that holds the lower lock never takes the upper one. Workers hold `lock` while
      they form batches and record results, never during a model call. The event loop never takes it, because rows are
      copied under it.
    - The event loop calls `submit` and `stop`. Workers call `wait_for_work` and `publish_events` without `lock`, and
      may read `inbox`, `stopped`, `alive_devices` and `queue.row_count` without it. Everything else needs it.
    - The event loop sets everything of a request before it hands the request over through `inbox`, and later only
      closes it. `closed` never becomes false again. So a worker may read it at any time, and whoever closes a request
      (`Admission.close` tells one thread) reports its end.
    - The rows of slices in a batch, and the batch's buffers, belong to the thread of its worker, which steps them and
      cuts them without a lock. Others then see at most a further slice in `request.slices`, which is not in the queue.

    A worker that holds `lock` calls ``publish``, with events in their order, and ``on_all_devices_lost``. Each of the
    ``devices`` has one worker; on a CPU, an instance of the model stands for a device. Without a ``wake_rule`` any
    waiting row is worth a further worker.
    """

    def __init__(
        self,
        admission: Admission,
        clock: Clock,
        observer: SchedulerObserver,
        publish: OnEvents,
        *,
        devices: int,
        wake_rule: WakeRule | None,
        on_batch: OnBatch | None,
        on_all_devices_lost: Callable[[], None],
        prepare_thread: Callable[[], None],
    ) -> None:
        self.admission, self.clock, self.observer, self.on_batch = admission, clock, observer, on_batch
        self.on_all_devices_lost, self.prepare_thread = on_all_devices_lost, prepare_thread
        self.lock = threading.Lock()
        # New requests, and closed ones that are to be removed. Appending and popping are atomic.
        self.inbox: deque[ScheduledRequest] = deque()
        self.queue = FairQueue()
        self.batches: list[RunningBatch] = []  # two of each worker, in the order of the workers
        self.alive_devices, self.device_error = devices, ""  # those that are not lost; why the last was
        self.stopped = False  # whether every worker is to end
        self.wake_rule, self._publish = wake_rule, publish
        self._events: Events = []
        self._open: set[ScheduledRequest] = set()
        self._streamed: set[ScheduledRequest] = set()
        self._next_progress = 0.0
        self._wake = threading.Lock()
        self._conditions = [threading.Condition(self._wake) for _ in range(devices)]
        self.sleepers: list[int] = []  # workers that wait and have not been notified, in ascending order
        self._waking_workers = 0  # workers notified of new requests that have not formed a batch since

    def submit(self, requests: Iterable[ScheduledRequest]) -> None:
        """Hand over requests: open ones are run, closed ones are removed."""
        # Wake as many workers as the waiting rows are worth, less those on their way; at least one if all are idle.
        self.inbox.extend(requests)
        with self._wake:
            if self.sleepers:
                wanted = self.admission.waiting // self._min_rows() - self._waking_workers
                all_idle = len(self.sleepers) == self.alive_devices
                self._waking_workers += self._wake_workers(max(wanted, int(all_idle)))

    def stop(self) -> None:
        """Make every worker end after its current step."""
        self.stopped = True
        with self._wake:
            self._wake_workers(len(self.sleepers))

    def wait_for_work(self, index: int) -> bool:
        """Wait until there is something to do for the worker with this index; returns whether it slept."""
        woken = False
        with self._wake:
            while not self.has_work():
                woken = True
                insort(self.sleepers, index)
                self._conditions[index].wait()  # `_wake_workers` has taken this worker out of the sleepers
                if not self.has_work():  # another worker took the rows
                    self._waking_workers = max(0, self._waking_workers - 1)
        return woken

    def rows_for_worker(self, limit: int, rows: int, *, woken: bool) -> int:
        """How many of the waiting ``rows`` a worker takes: its share if others are idle, else up to its ``limit``."""
        # Workers that were notified and have not formed a batch yet count as idle, but once: waking a thread can take
        # longer than a model call, and then others get its share. `woken`: the caller is one of them.
        if self.alive_devices == 1:
            return limit
        with self._wake:
            others, self._waking_workers = len(self.sleepers) + max(0, self._waking_workers - woken), 0
        share = -(-rows // (others + 1))  # rounded up
        return min(limit, max(self._min_rows(), share))

    def should_split(self, rows: int) -> bool:
        """Whether a batch of so many unfinished rows is to be divided with an idle worker."""
        return bool(self.sleepers) and rows >= 2 * self._min_rows()

    def wake_others(self, *, at_least_one: bool = False) -> None:
        """Wake idle workers for rows that the caller leaves in the queue; ``at_least_one``: even if they are few."""
        if self.sleepers and self.queue.row_count:
            with self._wake:
                self._wake_workers(max(self.queue.row_count // self._min_rows(), int(at_least_one)))

    def take_arrivals(self) -> list[Slice]:
        """Empty the inbox; returns the rows of the new requests. Closed ones are removed."""
        arrived = list[Slice]()
        while self.inbox:
            request = self.inbox.popleft()
            if request.closed:
                self.remove(request)
                continue
            self._open.add(request)
            if request.params.streamed:
                self._streamed.add(request)
            arrived.append(request.begin())
        return arrived

    def requeue(self, slices: Iterable[Slice]) -> None:
        """Queue unfinished rows again that were removed from a batch."""
        waiting = [piece for piece in slices if not piece.request.closed]
        self.admission.on_rows_moved(waiting, (), self.clock())
        self.queue.push(waiting)

    def emit(self, events: Sequence[tuple[ScheduledRequest, StepOutput | StreamProgress]]) -> None:
        """Publish steps or the progress of requests with the next events, to those that are streamed."""
        for request, event in events:
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
        for request, outcome in outcomes.items():
            if request in closed and request.params.step_params.tolerance is not None and isinstance(outcome, Result):
                early = outcome.steps < request.params.step_params.steps
                if early.any():
                    self.observer.early_exit(int(early.sum()))
            self.remove(request)

    def remove(self, request: ScheduledRequest) -> None:
        """Remove a closed request from the queue and the sets, and have batches with rows of it rebuilt."""
        self._open.discard(request)
        self._streamed.discard(request)
        if request.rows_left:  # done rows are in no queue, and leave their batch by themselves
            self.queue.remove(request)
            if any(piece.at >= 0 and not piece.done for piece in request.slices):
                for batch in self.batches:
                    batch.needs_rebuild = True
        request.slices = []  # breaks the reference cycle, so that no garbage collection is needed

    def publish_progress(self, now: float) -> None:
        """Emit the progress of every stream each `_PROGRESS_S` seconds."""
        if self._streamed and now >= self._next_progress:
            self._next_progress = now + _PROGRESS_S
            self.emit([(request, request.progress()) for request in self._streamed if request.started is not None])

    def fail(self, requests: set[ScheduledRequest] | None, cause: BaseException) -> dict[ScheduledRequest, IgnError]:
        """Close requests, None for all, after a worker died; returns those that were open, which nobody counts yet."""
        requests = set(self._open) if requests is None else requests
        failed = dict[ScheduledRequest, IgnError]()
        for request in self.admission.close(requests):
            failed[request] = model_failure("the model failed", cause)
        self._events.extend(failed.items())
        self._open -= requests
        self._streamed -= requests
        # The worker may have died in the middle of a change to the queue, so nothing of the old queue is reused.
        self.queue = FairQueue()
        for request in self._open:
            self.queue.push([piece for piece in request.slices if piece.at < 0 and not piece.done])
        for batch in self.batches:
            batch.needs_rebuild = True
        return failed

    def publish_events(self) -> None:
        """Publish the collected events, of whichever worker; the lock keeps them in order."""
        if self._events:
            with self.lock:
                events, self._events = self._events, []
                self._publish(events)

    def _min_rows(self) -> int:
        # Fewest rows that are worth waking another worker; 1 if the open rows have many steps left.
        total = self.admission.total
        if self.wake_rule is None or total.steps > _MANY_STEPS * total.rows:
            return 1
        return self.wake_rule.min_rows(len(self._open) + len(self.inbox), total.rows)

    def _wake_workers(self, count: int) -> int:
        # Notify at most so many idle workers, and return how many. The caller holds `_wake`.
        # The lowest index comes first: the worker that ran last has its code and weights in the core's cache.
        woken, self.sleepers = self.sleepers[:count], self.sleepers[count:]
        for index in woken:
            self._conditions[index].notify()
        return len(woken)

    def has_work(self) -> bool:
        """Whether a worker is to form a batch, or to end."""
        return self.stopped or bool(self.inbox) or self.queue.row_count > 0


class Worker:
    """Forms batches for one model instance, and runs them in a thread of its own, which alone calls ``model``."""

    def __init__(self, model: Model, pool: WorkerPool, index: int, memory: ModelMemory | None = None) -> None:
        self._model, self._pool, self._index = model, pool, index
        self._memory = memory
        self._has_memory = False  # whether this worker has acquired it
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.running = self.device_lost = False
        self._reset()

    def _reset(self) -> None:
        # Start with empty batches: that of the worker, and one for short requests that go before it.
        pool = self._pool
        limit = pool.admission.limits[self._index]
        self._batch, self._apart = pool.batches[2 * self._index : 2 * self._index + 2] = [
            RunningBatch(self._model, limit, pool.clock, self._on_model_call) for _ in range(2)
        ]
        self._began = 0.0  # when the current cycle began
        self._was_apart = False  # whether the last step was that of `_apart`
        self._in_step = False  # whether an error that ends the thread is about the rows of the batches

    def start(self) -> None:
        """Start the thread, or another one in its place."""
        self.running = True
        with self._starting:  # a thread can only be joined after it has started
            self._thread = threading.Thread(target=self._main, name=f"ign-worker-{self._index}", daemon=True)
            self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait at most so long for the thread to end."""
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _main(self) -> None:
        pool = self._pool
        pool.prepare_thread()
        try:
            while True:
                woken = self._wait_for_work()
                if pool.stopped:
                    break
                with pool.lock:
                    batch = self._form_batch(woken=woken)
                if batch.slices:
                    self._step(batch)
                pool.publish_events()
                if self.device_lost and pool.alive_devices:  # the other workers have its rows
                    break
            self.running = False
        except BaseException as exc:
            # No exception is expected here. Callers must not wait for a thread that is gone, so their requests fail.
            self.running = False
            logger.critical("a worker's thread died; another one replaces it", exc_info=exc)
            failed = self._fail_rows(exc)
            if not (self.device_lost and pool.alive_devices):
                self.start()
            try:
                pool.observer.worker_replaced()
                pool.observer.finished([request.finished(failure, pool.clock()) for request, failure in failed.items()])
            finally:
                pool.publish_events()

    def _wait_for_work(self) -> bool:
        # As `WorkerPool.wait_for_work`. Rows that wait for memory wait in the queue, where their deadline ends them.
        pool, memory, batch = self._pool, self._memory, self._batch
        if memory is not None and self._has_memory and (memory.is_claimed or not (batch.slices or pool.has_work())):
            with pool.lock:
                pool.requeue(batch.remove(batch.slices))
            self._has_memory = False
            memory.release()
        woken = not batch.slices and pool.wait_for_work(self._index)
        if memory is not None and not self._has_memory:
            self._has_memory = memory.acquire()
        return woken

    def _fail_rows(self, cause: BaseException) -> dict[ScheduledRequest, IgnError]:
        # If the thread died in a step, fail the requests in the batches, else all of them: the queue may be broken.
        with self._pool.lock:
            slices = self._batch.slices + self._apart.slices
            requests = {piece.request for piece in slices} if self._in_step else None
            self._reset()
            return self._pool.fail(requests, cause)

    def _form_batch(self, *, woken: bool) -> RunningBatch:
        # The caller holds the pool's lock. All rows of the batch go back to the queue and compete with those that wait,
        # so that a long request does not hold up a short one. Unless somebody waits, a row has ended or expired, or an
        # idle worker could take a part, the batch stays as it is.
        batch, pool = self._batch, self._pool
        arrived = pool.take_arrivals()
        self._began = now = pool.clock()
        self._was_apart = self._goes_apart(arrived, now)
        if self._was_apart:
            self._rebuild(self._apart, arrived, now)
            return self._apart
        pool.queue.push(arrived)
        if pool.queue.row_count or batch.needs_rebuild or now >= batch.expires or pool.should_split(batch.row_count):
            self._choose_rows(now, woken=woken)
        return batch

    def _goes_apart(self, arrived: list[Slice], now: float) -> bool:
        # New requests run in a batch of their own, before the next step of the rows that are in the batch, if they are
        # all that waits, need one step and fit one batch, and their step is much shorter without the other rows. Every
        # second step at most is one of these, so that the others go on.
        if not (arrived and self._batch.slices) or self._was_apart or self._pool.queue.row_count:
            return False
        if any(piece.request.row_steps > 1 or piece.request.expires <= now for piece in arrived):
            return False
        rows = sum(piece.count for piece in arrived)
        return rows <= self._batch.limit and self._pool.admission.is_short_apart(rows, self._batch.row_count, now)

    def _choose_rows(self, now: float, *, woken: bool) -> None:
        batch, pool = self._batch, self._pool
        if batch.slices:
            pool.queue.push([piece for piece in batch.slices if not (piece.done or piece.request.closed)])
        places = pool.rows_for_worker(batch.limit, pool.queue.row_count, woken=woken)
        chosen, expired = pool.queue.take(places, now)
        self._rebuild(batch, chosen, now)
        if expired:
            pool.finish({request: DeadlineExceeded("the deadline passed while waiting") for request in expired})
        pool.wake_others()

    def _rebuild(self, batch: RunningBatch, chosen: list[Slice], now: float) -> None:
        left, joined = batch.rebuild(chosen)
        self._pool.admission.on_rows_moved(left, joined, now)
        for piece in joined:
            request = piece.request
            if request.started is None:
                request.started = now
            # This is step 0; later steps are recorded by `RunningBatch.commit`.
            if request.params.step_params.record and piece.is_recorded():
                rows = request.inputs[piece.start : piece.start + piece.count]
                self._pool.emit([(request, output) for output in piece.record(rows, None)])

    def _step(self, batch: RunningBatch) -> None:
        pool, rule = self._pool, self._pool.wake_rule
        pool.publish_events()  # recorded inputs and expired requests need not wait for the device
        self._in_step = True
        cpu_began = rule.cpu_clock() if rule else 0.0
        # Rows that wait compete for the batch after every step, so unobserved steps run only while nobody waits.
        steps = 0 if pool.queue.row_count else batch.run_unobserved(self._began + _MAX_UNOBSERVED_S, pool.inbox)
        finished, outputs = ([], []) if steps else self._observed_step(batch)
        steps, now, slices = steps or 1, pool.clock(), batch.slices
        with pool.lock:
            if rule:
                rule.on_steps(steps * batch.row_count, rule.cpu_clock() - cpu_began)
            if outputs:
                pool.emit(outputs)
            results = self._results_of(finished, now)
            pool.admission.on_steps_done(slices, steps, finished, self._began, now)
            pool.finish(results)
            # Last, because `_fail_rows` must find the rows in the batch if anything above fails. A batch without rows
            # lets the next cycle wait instead of forming an empty one.
            batch.remove_finished()
            self._in_step = False
            if self.device_lost and pool.alive_devices:
                pool.requeue(self._batch.remove(self._batch.slices))
                pool.wake_others(at_least_one=True)
            pool.publish_progress(now)
        if pool.on_batch is not None:
            observers = [piece.request.params.observer for piece in slices for _ in range(piece.count)]
            pool.on_batch(observers, self._began, now, steps)

    def _observed_step(self, batch: RunningBatch) -> tuple[list[Slice], Outputs]:
        pool, failed = self._pool, batch.step()
        self._log_failures(failed, batch.row_count)
        if failed or batch.device_lost is not None:
            with pool.lock:
                pool.finish(dict(reversed(failed)))  # of a request with several failed rows the first is told
                if batch.device_lost is not None:
                    self._on_device_lost(batch, batch.device_lost)
        ended = batch.commit()
        if batch.limit != pool.admission.limits[self._index] and not self.device_lost:
            pool.admission.set_limit(self._index, batch.limit)
            pool.observer.reduce_max_batch(batch.limit)
            for each in (self._batch, self._apart):
                each.limit, each.needs_rebuild = batch.limit, bool(each.slices)
        return ended

    def _results_of(self, finished: Iterable[Slice], now: float) -> dict[ScheduledRequest, Result | IgnError]:
        results = dict[ScheduledRequest, Result | IgnError]()
        for piece in finished:
            request = piece.request
            request.rows_left -= piece.count
            if request.rows_left == 0:
                results[request] = request.result(now)
        return results

    def _log_failures(self, failed: list[tuple[ScheduledRequest, IgnError]], size: int) -> None:
        # One line for each cause.
        causes = [(request, failure.reason) for request, failure in failed if isinstance(failure, ModelFailure)]
        for reason in dict.fromkeys(reason for _, reason in causes):
            rows = [request for request, cause in causes if cause == reason]
            logger.error("the model failed on %d of %d rows: %s%s", len(rows), size, reason, _request_ids(rows))

    def _on_device_lost(self, batch: RunningBatch, cause: Exception) -> None:
        # The rows of the failed call are queued again for other devices; without any, their requests fail.
        pool, lost = self._pool, batch.remove_lost()
        if not self.device_lost:
            self.device_lost = True
            pool.alive_devices -= 1
            pool.observer.device_lost()
            others = f"; others go on, {pool.alive_devices} of them" if pool.alive_devices else ""
            logger.critical(
                "a device is lost: %s. It fails every call until this process is started anew%s%s",
                cause,
                others,
                _request_ids(piece.request for piece in lost),
            )
            if pool.alive_devices:
                pool.admission.set_limit(self._index, 0)
            else:
                pool.device_error = str(cause) or type(cause).__name__
                pool.on_all_devices_lost()
        if pool.alive_devices:
            pool.requeue(lost)
        else:
            pool.finish({piece.request: model_failure("the model failed on this row", cause) for piece in lost})

    def _on_model_call(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        pool = self._pool
        if pool.alive_devices - len(pool.sleepers) > 1 and _CAN_YIELD:  # they could keep the event loop from running
            os.sched_yield()
        pool.admission.on_model_call(rows, seconds, pool.clock())
        pool.observer.batch(rows, padded, seconds, reason)


def _request_ids(requests: Iterable[ScheduledRequest]) -> str:
    ids = [name for name in dict.fromkeys(request.params.request_id for request in requests) if name]
    more = f" and {len(ids) - _MAX_LOGGED_IDS} more" if len(ids) > _MAX_LOGGED_IDS else ""
    return f"; requests {', '.join(ids[:_MAX_LOGGED_IDS])}{more}" if ids else ""
