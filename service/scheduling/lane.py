"""A lane: one thread for a model instance, a function from batches of rows to f of them. It owns
nothing else.

The event loop makes a batch, gives it to a lane, and reads it again once the lane has delivered it.
Between the two only the lane changes it, so there is no lock.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

import numpy as np

from service.domain.latents import FloatRows
from service.domain.model import (
    DeviceLost,
    DeviceOutOfMemory,
    Model,
    ModelMemory,
    bucket_of,
    largest_batch,
    padded,
)
from service.domain.steps import mean_changes
from service.scheduling.report import ModelCall
from service.scheduling.request import Batch, model_failure

logger = logging.getLogger(__name__)

# of a batch whose values nobody needs before: progress events are promised every second
_MAX_RUN_S: Final = 0.1

Clock = Callable[[], float]


class Lane:
    """Runs batches in a thread of its own, which calls ``model``, and appends them to `delivered`.

    That thread calls ``on_delivery`` when the first one is there. With a ``memory``, the model is
    held open while a batch runs.
    """

    def __init__(
        self,
        model: Model,
        limit: int,
        clock: Clock,
        on_delivery: Callable[["Lane"], None],
        memory: ModelMemory | None,
        device: int,
    ) -> None:
        self.limit = limit
        self.device = device
        self.has_buckets = model.buckets is not None
        self.batches = deque[
            Batch
        ]()  # given and not delivered, in their order; of the event loop only
        self.delivered = deque[Batch]()  # the thread appends, the event loop pops
        self.is_lost = False
        self._model = model
        self._clock = clock
        self._memory = memory
        self._on_delivery = on_delivery
        self._given = SimpleQueue[Batch | None]()
        self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._main, name="ign-lane", daemon=True)
        thread.start()
        self._thread = thread

    def give(self, batch: Batch) -> None:
        """Have a batch run after those given before; one that runs for many steps ends after the
        present one.
        """
        self.batches.append(batch)
        self._given.put(batch)

    def stop(self) -> None:
        """Make the thread end after the batches that it has."""
        self._given.put(None)

    def join(self, seconds: float) -> None:
        """Wait at most so long for the thread to end."""
        self._thread.join(seconds)

    def _main(self) -> None:
        while (batch := self._given.get()) is not None:
            try:
                self._run(batch)
            except BaseException as exc:
                # No exception is expected here. Callers must not wait for a thread that is gone.
                batch.death = exc
            self.delivered.append(batch)
            if len(self.delivered) == 1:  # else the event loop is on its way
                self._on_delivery(self)
            if batch.death is not None:
                self._start()  # another thread in its place
                return
            del batch  # it holds the rows, and the next one may come late

    def _run(self, batch: Batch) -> None:
        memory = self._memory
        if self.is_lost or (memory is not None and not memory.acquire()):
            return
        try:
            self._apply(batch)
        finally:
            if memory is not None:
                memory.release()

    def _apply(self, batch: Batch) -> None:
        parts = [piece.rows for piece in batch.slices]
        x = y = parts[0] if len(parts) == 1 else np.concatenate(parts)
        batch.began = self._clock()
        until = batch.expires if batch.steps == 1 else min(batch.expires, batch.began + _MAX_RUN_S)
        while not self._is_over(batch, until):
            try:
                made = self._run_part(batch, y, 0)
            except DeviceLost as exc:  # every further call would fail too; earlier steps count
                self.is_lost = True
                batch.device_lost = exc.with_traceback(None)
                batch.failed.clear()
                break
            x = y
            y = made
            batch.done += 1
            if not (batch.failed or batch.done == batch.steps or np.isfinite(y).all()):
                break
        if batch.done:
            batch.y, batch.changes = y, mean_changes(y, x)
            for index in np.flatnonzero(~np.isfinite(batch.changes)).tolist():
                batch.failed.setdefault(index, None)

    def _is_over(self, batch: Batch, until: float) -> bool:
        if batch.is_stopped or self._clock() >= until:
            return True
        if not batch.done:
            return False
        others = not self._given.empty() or (self._memory is not None and self._memory.is_claimed)
        return bool(others or batch.done == batch.steps or batch.failed)

    def _run_part(self, batch: Batch, x: FloatRows, start: int) -> FloatRows:
        """One step of the rows from ``start`` on; rows on which the model fails stay as they
        are.
        """
        # If the call fails, run each half, down to single rows: one bad row costs about 2·log₂(n)
        # further calls, and only its own request fails. A part larger than `limit`, which a device
        # out of memory has lowered, is halved without a call.
        #
        #     0 1 2 3 4 5 6 7    fails, and 5 is the bad row
        #     0 1 2 3 │ 4 5 6 7          the right half fails
        #               4 5 │ 6 7        the left one
        #               4 │ 5            5 fails alone
        #
        # Errors lose their frames, which hold the rows and the error itself: such a cycle is hardly
        # ever collected.
        n = len(x)
        can_split = n > 1
        cause: Exception | None = None
        try:
            if n <= self.limit:
                return self._call(batch, x)
        except DeviceLost:
            raise
        except DeviceOutOfMemory as exc:
            cause = exc.with_traceback(None)
            can_split = self._reduce_limit(n) and can_split
        except (
            Exception
        ) as exc:  # whatever the model raises is about these rows, not about the service
            cause = exc.with_traceback(None)
        if can_split:
            left = self._run_part(batch, x[: n // 2], start)
            return np.concatenate((left, self._run_part(batch, x[n // 2 :], start + n // 2)))
        for index in range(start, start + n):
            batch.failed[index] = model_failure("the model failed on this row", cause)
        return x

    def _call(self, batch: Batch, x: FloatRows) -> FloatRows:
        rows = padded(x, self._model.buckets) if self.has_buckets else x
        began = self._clock()
        y = self._model.run(rows)
        ended = self._clock()
        reason = batch.reason if len(x) == batch.rows else "retry"
        batch.calls.append(ModelCall(len(x), len(rows), ended - began, reason, ended))
        return y[: len(x)]

    def _reduce_limit(self, rows: int) -> bool:
        # After so many rows did not fit the device, continue with smaller batches; False if the
        # model cannot.
        half = bucket_of(rows, self._model.buckets) // 2
        try:
            self._model.reduce_max_batch()
        except Exception:
            logger.exception("the model could not recover from running out of memory")
            return False
        self.limit = max(1, min(largest_batch(self._model, self.limit), half))
        return True
