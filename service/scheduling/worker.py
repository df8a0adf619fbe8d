"""A worker: the thread of one model instance, which forms a batch before every step and runs it.

A worker waits only while there is nothing to do. It never waits for more rows: a batch is what is there.
"""

import logging
import threading
from collections.abc import Iterable
from typing import Final

from service.domain.errors import DeadlineExceeded, IgnError, ModelFailure
from service.domain.model import Model
from service.domain.tasks import Result, StepOutput
from service.scheduling.batch import RunningBatch
from service.scheduling.request import Row, ScheduledRequest, finish_single_steps, whole_requests
from service.scheduling.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

_MAX_UNOBSERVED_S: Final = 0.25  # longest run of unobserved steps; progress events are promised every second
_MAX_LOGGED_IDS: Final = 16  # of requests, in one line of the log


class Worker:
    """Forms batches for one model instance, and runs them in a thread of its own.

    Args:
        model: the instance. Only this worker's thread calls it.
        pool: shared with the workers of the model's other instances.
        index: the worker's number among them, from 0.
    """

    def __init__(self, model: Model, pool: WorkerPool, index: int = 0) -> None:
        self._model, self._pool, self._index = model, pool, index
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.running = False
        """Whether the thread runs."""
        self.device_lost = False
        """Whether the device fails every call from now on."""
        self._reset()

    def _reset(self) -> None:
        """Start with an empty batch."""
        pool = self._pool
        self._batch = pool.batches[self._index] = RunningBatch(
            self._model, pool.admission.limit(self._index), pool.clock, self._on_model_call
        )
        self._began = 0.0  # when the current cycle began
        self._was_apart = False  # whether the last step was one of requests that ran before the rows of the batch
        self._in_step = False  # whether an error that ends the thread is about the rows of the batch

    def start(self) -> None:
        """Start the thread."""
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
        try:
            while True:
                woken = not self._batch.rows and pool.wait_for_work(self._index)
                if pool.stopped:
                    break
                with pool.lock:
                    self._form_batch(woken=woken)
                self._run_batch()
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
                pool.observer.finished([request.finished(failure, pool.clock()) for request, failure in failed])
            finally:
                pool.publish_events()

    def _fail_rows(self, cause: BaseException) -> list[tuple[ScheduledRequest, IgnError]]:
        """Fail the requests in the batch if the thread died in a step, else all requests: the queue may be broken."""

        def make_error() -> ModelFailure:
            failure = ModelFailure("the model failed")
            failure.__cause__ = cause
            return failure

        with self._pool.lock:
            batch = self._batch
            requests = {*batch.requests, *(row.request for row in batch.rows)} if self._in_step else None
            self._reset()
            return self._pool.fail(requests, make_error)

    def _form_batch(self, *, woken: bool) -> None:
        """Choose what runs next. The caller holds the pool's lock.

        All rows of the batch go back to the queue and compete with those that wait, so that a long request does not
        hold up a short one. This is skipped if nobody waits, nothing has changed in the batch, no deadline has passed
        and no idle worker could take a part of it: then the batch stays as it is.

        It is also skipped if nothing but new requests of a single step waits, and there is room for all of them. They
        run alone if the batch is empty or, every second time, if that makes their step much shorter.
        """
        batch, pool = self._batch, self._pool
        arrived, places = pool.take_arrivals(), None
        self._began = now = pool.clock()
        if arrived and not pool.queue.row_count and all(r.is_single_step and r.expires > now for r in arrived):
            rows, others = sum(request.open_rows for request in arrived), len(batch.rows)
            if not others:
                places = pool.rows_for_worker(batch.limit, rows, woken=woken)
                is_taken = rows <= places
            else:
                is_taken = (
                    rows <= batch.limit and not self._was_apart and pool.admission.is_short_apart(rows, others, now)
                )
            if is_taken:
                self._was_apart = others > 0
                self._take_requests(arrived, now)
                return
        self._was_apart = False
        pool.enqueue(arrived)
        if pool.queue.row_count or batch.needs_rebuild or now >= batch.expires or pool.should_split(len(batch.rows)):
            self._choose_rows(places, now, woken=woken)

    def _take_requests(self, requests: list[ScheduledRequest], now: float) -> None:
        """Make requests of a single step the batch as they are: that takes a part of the time of their rows."""
        self._batch.requests = requests
        self._pool.admission.on_requests_moved(requests, joined=True, now=now)
        for request in requests:
            request.started = now

    def _choose_rows(self, places: int | None, now: float, *, woken: bool) -> None:
        """Make rows of the queue and of the batch the new batch: as many as there are ``places``, if that is known."""
        batch, pool = self._batch, self._pool
        for row in batch.rows:
            if not (row.done or row.request.closed):
                pool.queue.push(row)
        if places is None:
            places = pool.rows_for_worker(batch.limit, pool.queue.row_count, woken=woken)
        chosen, expired = pool.queue.take(places, now)
        requests = [] if batch.rows else whole_requests(chosen)
        if requests:
            self._take_requests(requests, now)
        else:
            left, joined = batch.rebuild(chosen)
            pool.admission.on_rows_moved(left, joined, now)
            for row in joined:
                self._on_join(row, now)
        pool.finish({request: DeadlineExceeded("the deadline passed while waiting") for request in expired})
        pool.wake_others()

    def _on_join(self, row: Row, now: float) -> None:
        request = row.request
        if request.started is None:
            request.started = now
        if request.params.step_params.record and row.is_recorded():  # step 0; later steps are recorded in `commit`
            self._pool.emit(request, row.record_step(request.inputs[row.index], None))

    def _run_batch(self) -> None:
        if self._batch.requests:
            self._run_requests()
        elif self._batch.rows:
            self._step()

    def _run_requests(self) -> None:
        """Run the step of a batch of whole requests. If it fails, they are queued and the next batch has their rows."""
        batch, pool, requests = self._batch, self._pool, self._batch.requests
        pool.publish_events()  # expired requests need not wait for the device
        self._in_step = True
        rule = pool.wake_rule
        cpu_began = rule.cpu_clock() if rule else 0.0
        found = batch.run_requests()
        now, rows = pool.clock(), sum(len(request.inputs) for request in requests)
        with pool.lock:
            if found is None:
                pool.admission.on_requests_moved(requests, joined=False, now=now)
                for request in requests:
                    request.by_rows = True
                pool.enqueue(requests)
            else:
                if rule:
                    rule.on_steps(rows, rule.cpu_clock() - cpu_began)
                pool.admission.on_requests_done(rows, self._began, now)
                pool.finish(finish_single_steps(requests, *found, now))
            batch.requests, self._in_step = [], False
            pool.publish_progress(now)
        if found is not None and pool.on_batch is not None:
            observers = [request.params.observer for request in requests for _ in request.inputs]
            pool.on_batch(observers, self._began, now, 1)

    def _step(self) -> None:
        """Run unobserved steps, or one observed step, and record what came of them."""
        batch, pool = self._batch, self._pool
        pool.publish_events()  # recorded inputs and expired requests need not wait for the device
        self._in_step = True
        rule = pool.wake_rule
        cpu_began = rule.cpu_clock() if rule else 0.0
        # Rows that wait compete for the batch after every step, so unobserved steps run only while nobody waits.
        steps = 0 if pool.queue.row_count else batch.run_unobserved(self._began + _MAX_UNOBSERVED_S, pool.inbox)
        finished: list[Row] = []
        outputs: list[tuple[ScheduledRequest, StepOutput]] = []
        if steps == 0:
            steps = 1
            finished, outputs = self._observed_step()
        now, rows = pool.clock(), batch.rows
        with pool.lock:
            if rule:
                rule.on_steps(steps * len(batch.rows), rule.cpu_clock() - cpu_began)
            for request, output in outputs:
                pool.emit(request, output)
            pool.admission.on_steps_done(batch.rows, steps, finished, self._began, now)
            self._finish_rows(finished, now)
            # A batch without rows makes the next cycle wait. Without this it would form an empty batch first. This
            # comes last, because `_fail_rows` must find the rows in the batch if anything above fails.
            batch.remove_finished()
            self._in_step = False
            if self.device_lost and pool.alive_devices:
                pool.requeue(batch.remove(batch.rows))
                pool.wake_others(at_least_one=True)
            pool.publish_progress(now)
        if pool.on_batch is not None:
            pool.on_batch([row.request.params.observer for row in rows], self._began, now, steps)

    def _observed_step(self) -> tuple[list[Row], list[tuple[ScheduledRequest, StepOutput]]]:
        """Run one step; returns the rows that are done and the steps to emit."""
        batch, pool = self._batch, self._pool
        failed = batch.step()
        if failed:
            self._log_failures(failed)
        if failed or batch.rows_on_lost_device:
            with pool.lock:
                pool.finish({row.request: failure for row, failure in reversed(failed)})
                if batch.device_lost is not None:
                    self._on_device_lost(batch.device_lost)
        ended = batch.commit()
        if batch.limit != pool.admission.limit(self._index) and not self.device_lost:
            pool.admission.set_limit(self._index, batch.limit)
            pool.observer.reduce_max_batch(batch.limit)
        return ended

    def _log_failures(self, failed: list[tuple[Row, IgnError]]) -> None:
        """Log why the model failed on rows of the batch: one line for each cause."""
        causes = [(row, failure.reason) for row, failure in failed if isinstance(failure, ModelFailure)]
        for reason in dict.fromkeys(reason for _, reason in causes):
            rows = [row for row, cause in causes if cause == reason]
            count, size = len(rows), len(self._batch.rows)
            logger.error("the model failed on %d of %d rows: %s%s", count, size, reason, _request_ids(rows))

    def _on_device_lost(self, cause: Exception) -> None:
        """Requeue the rows of the failed call for other devices; without any, their requests fail."""
        batch, pool = self._batch, self._pool
        if not self.device_lost:
            self.device_lost = True
            pool.mark_device_lost(str(cause))
            others = f"; others go on, {pool.alive_devices} of them" if pool.alive_devices else ""
            logger.critical(
                "a device is lost: %s. It fails every call until this process is started anew%s%s",
                cause,
                others,
                _request_ids(batch.rows_on_lost_device),
            )
            if pool.alive_devices:
                pool.admission.set_limit(self._index, 0)
        rows = batch.remove(batch.rows_on_lost_device)
        if pool.alive_devices:
            pool.requeue(rows)
            return
        for row in rows:
            failure = ModelFailure("the model failed on this row", reason=str(cause))
            failure.__cause__ = cause
            pool.finish({row.request: failure})

    def _finish_rows(self, rows: Iterable[Row], now: float) -> None:
        done: dict[ScheduledRequest, Result | IgnError] = {}
        for row in rows:
            request = row.request
            request.rows_left -= 1
            if request.rows_left == 0:
                done[request] = request.result(now)
        if done:
            self._pool.finish(done)

    def _on_model_call(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        pool = self._pool
        pool.yield_core()
        pool.admission.on_model_call(rows, seconds, pool.clock())
        pool.observer.batch(rows, padded, seconds, reason)


def _request_ids(rows: Iterable[Row]) -> str:
    """The end of a log line: the ids of the requests that these rows belong to."""
    ids = [name for name in dict.fromkeys(row.request.params.request_id for row in rows) if name]
    more = f" and {len(ids) - _MAX_LOGGED_IDS} more" if len(ids) > _MAX_LOGGED_IDS else ""
    return f"; requests {', '.join(ids[:_MAX_LOGGED_IDS])}{more}" if ids else ""
