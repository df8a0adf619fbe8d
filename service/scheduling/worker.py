"""The thread that decides, before every pass of its device, who runs, and runs them.

It waits only when there is nothing to do, and it never waits for more: a batch is whatever is there.
"""

import logging
import threading
from typing import Final

from service.domain.errors import DeadlineExceeded, IgnError, ModelFailure
from service.domain.model import Model
from service.domain.tasks import StepOutput
from service.scheduling.batch import RunningBatch
from service.scheduling.observer import report
from service.scheduling.request import Row, ScheduledRequest
from service.scheduling.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

_SLICE_S: Final = 0.25  # longest stretch of passes nobody hears of; far below the promised second


class Worker:
    """Forms batches for one device, and runs them.

    Args:
        model: on its device.
        desk: shared with the executors of the same model on other devices.
        place: its number among them, from 0.
    """

    def __init__(self, model: Model, desk: WorkerPool, place: int = 0) -> None:
        self._model, self._desk, self._place = model, desk, place
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.working = False
        """Whether the thread is there."""
        self.lost = False
        """Whether the device is lost: whatever is still asked of it fails at once."""
        self._renew()

    def _renew(self) -> None:
        """Start with an empty batch."""
        desk = self._desk
        self._batch = desk.batches[self._place] = RunningBatch(
            self._model, desk.books.limits[self._place], desk.clock, self._ran
        )
        self._began = 0.0
        self._in_pass = False

    def start(self) -> None:
        """Start the thread."""
        self.working = True
        with self._starting:  # nobody can wait for a thread that has not begun
            self._thread = threading.Thread(target=self._main, name=f"ign-executor-{self._place}", daemon=True)
            self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end."""
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _main(self) -> None:
        desk = self._desk
        try:
            while True:
                woken = not self._batch.rows and desk.wait()
                if desk.ended:
                    break
                with desk.lock:
                    desk.take_in()
                    self._form(woken=woken)
                if self._batch.rows:
                    self._pass()
                desk.flush()
                if self.lost and desk.sound:  # the others have its rows
                    break
            self.working = False
        except BaseException as exc:
            # Nothing raised here is expected, and a caller must never wait on a thread that is gone.
            self.working = False
            logger.critical("an executor's thread died; another takes its place", exc_info=exc)
            failed = self._bury(exc)
            if not (self.lost and desk.sound):
                self.start()
            try:
                desk.observer.replaced()
                for request, failure in failed:
                    report(desk.observer, request, failure, desk.clock())
            finally:
                desk.flush()

    def _bury(self, cause: BaseException) -> list[tuple[ScheduledRequest, IgnError]]:
        """Fail the requests the death was about: those in the pass, or all when it was not in a pass."""

        def failure() -> ModelFailure:
            found = ModelFailure("the model failed")
            found.__cause__ = cause
            return found

        with self._desk.lock:
            doomed = {row.request for row in self._batch.rows} if self._in_pass else None
            self._renew()
            return self._desk.fail(doomed, failure)

    def _form(self, *, woken: bool) -> None:
        """Decide anew who runs, unless all who are there run already."""
        batch, desk = self._batch, self._desk
        queue = desk.queue
        self._began = now = desk.clock()
        if not (len(queue) or batch.stale) and now < batch.expires and not desk.splits(len(batch.rows)):
            return
        for row in batch.rows:
            if not (row.done or row.request.closed):
                queue.push(row)
        chosen, expired = queue.take(desk.places(batch.limit, woken=woken), now)
        left, joined = batch.arrange(chosen)
        desk.books.formed(left, joined, now)
        for row in joined:
            self._enter(row, now)
        for request in expired:
            desk.close(request, DeadlineExceeded("the deadline passed while waiting"))
        desk.share()

    def _enter(self, row: Row, now: float) -> None:
        request = row.request
        if request.started is None:
            request.started = now
        if row.recorded():  # only step 0 can be due before a pass
            self._desk.show(request, row.capture(request.rows[row.index], None))

    def _pass(self) -> None:
        batch, desk = self._batch, self._desk
        desk.flush()  # the prepared input and the expired do not wait for the device
        self._in_pass = True
        passes = 0 if len(desk.queue) else batch.cruise(self._began + _SLICE_S, desk.inbox)
        finished: list[Row] = []
        steps: list[tuple[ScheduledRequest, StepOutput]] = []
        if passes == 0:
            passes = 1
            finished, steps = self._advance()
        now = desk.clock()
        with desk.lock:
            for request, step in steps:
                desk.show(request, step)
            desk.books.passed(batch.rows, passes, finished, self._began, now)
            for row in finished:
                self._finish(row.request, now)
            # Without rows, the next cycle waits instead of forming an empty batch. Last, because a failure in what
            # comes before must find the rows here.
            batch.remove_finished()
            self._in_pass = False
            if self.lost and desk.sound:
                desk.give_back(batch.release(batch.rows))
                desk.share(leaving=True)
            desk.tick(now)

    def _advance(self) -> tuple[list[Row], list[tuple[ScheduledRequest, StepOutput]]]:
        """Run a pass that somebody hears of; returns the rows that need no more, and what is to be seen."""
        batch, desk = self._batch, self._desk
        failed = batch.advance()
        if failed or batch.stranded:
            with desk.lock:
                for row, failure in failed:
                    desk.close(row.request, failure)
                if batch.lost is not None:
                    self._lose(batch.lost)
        ended = batch.settle()
        limits = desk.books.limits
        if batch.limit != limits[self._place] and not self.lost:
            limits[self._place] = batch.limit
            desk.observer.reduce_max_batch(batch.limit)
        return ended

    def _lose(self, cause: Exception) -> None:
        """Let other devices have the rows that the device was lost with; without any, they fail."""
        batch, desk = self._batch, self._desk
        if not self.lost:
            self.lost = True
            desk.lose()
            left = f"; others go on, {desk.sound} of them" if desk.sound else ""
            logger.critical("a device is lost: it fails every call until this process is started anew%s", left)
            if desk.sound:
                desk.books.limits[self._place] = 0
        stranded = batch.release(batch.stranded)
        if desk.sound:
            desk.give_back(stranded)
            return
        for row in stranded:
            failure = ModelFailure("the model failed on this row")
            failure.__cause__ = cause
            desk.close(row.request, failure)

    def _finish(self, request: ScheduledRequest, now: float) -> None:
        """One row of the request is done."""
        request.left -= 1
        if request.left == 0:
            self._desk.close(request, request.result(now))

    def _ran(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        desk = self._desk
        desk.yield_core()
        desk.books.ran(rows, seconds, desk.clock())
        desk.observer.batch(rows, padded, seconds, reason)
