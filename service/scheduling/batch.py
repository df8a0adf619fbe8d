"""The running batch: the rows on one device, and what one step does to them.

A *step* applies f once to every row of the batch; it is one model call unless a part of the batch fails. A batch
belongs to the thread of its worker. Others only read `rows` and set `needs_rebuild`, under the lock of
`service.scheduling.worker_pool.WorkerPool`.
"""

import logging
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence, Sized
from operator import attrgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import IgnError, ModelFailure
from service.domain.latents import FloatRows
from service.domain.model import DeviceBatch, DeviceLost, DeviceOutOfMemory, Model, largest_batch
from service.domain.tasks import StepOutput
from service.scheduling.buffers import BatchBuffers
from service.scheduling.request import Row, ScheduledRequest, commit_single_steps, copy_into_batch

logger = logging.getLogger(__name__)

_MAX_REASON: Final = 400  # characters


OnModelCall = Callable[[int, int, float, str], None]
"""Called after every model call: rows, rows with padding, seconds, why the batch had that size."""


class RunningBatch:
    """The rows that one device computes.

    The rows lie side by side in one of two buffers. A step reads one buffer and writes the other, so a row that stays
    in the batch is not copied between steps.

    Args:
        model: the network.
        max_rows: largest batch wanted. The model's largest bucket may lower it, and so does a device out of memory.
        clock: monotonic seconds.
        on_model_call: called after every model call.
    """

    def __init__(self, model: Model, max_rows: int, clock: Callable[[], float], on_model_call: OnModelCall) -> None:
        self._model, self._clock, self._on_model_call = model, clock, on_model_call
        self.limit = largest_batch(model, max_rows)
        shape = (self._padded(self.limit), *model.shape)
        self._buffers, self._request_buffers = BatchBuffers(shape), BatchBuffers(shape)
        self.rows: list[Row] = []
        self.requests: list[ScheduledRequest] = []
        """Requests of a single step that run next, before the rows; together no more than `limit` rows."""
        self.needs_rebuild = False
        """A row is done or its request closed, or the batch is larger than `limit`."""
        self.expires = math.inf
        """When the first request of the batch expires, on the scheduler's clock."""
        self.device_lost: DeviceLost | None = None
        """The error with which the device was lost."""
        self.rows_on_lost_device: list[Row] = []
        """Rows that were in a model call when the device was lost; the buffer has them as the step before left them."""
        self._retry_stepwise = False  # an unobserved step of these rows failed: run them with `step` from now on

    def run_requests(self) -> tuple[FloatRows, NDArray[np.float64]] | None:
        """Run the step of `requests`.

        Returns:
            All rows after the step and mean |f(x) − x| of each, as new arrays. None if the call failed or gave values
            that are not finite; `step` then finds out which rows that is about.
        """
        inputs = [request.inputs for request in self.requests]
        buffers, n = self._request_buffers, sum(map(len, inputs))
        np.concatenate(inputs, out=buffers.current.full[:n])
        buffers.use(n, self._padded(n))
        if not self._run_whole(buffers):
            return None
        buffers.measure(0, n)
        return buffers.next.rows.copy(), buffers.changes[:n].copy()

    def rebuild(self, chosen: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Make ``chosen`` the rows of the batch; returns the rows that left and those that joined.

        The state of a row that left and is queued again is saved in its request.
        """
        n, full = len(chosen), self._buffers.current.full
        if self.rows:
            left, joined = self._replace(chosen)
        else:
            left, joined = [], list(chosen)
            copy_into_batch(chosen, full)
            self.rows = list(chosen)
        self._buffers.use(n, self._padded(n) if n else 0)
        self.needs_rebuild = self._retry_stepwise = False
        self.expires = min((row.request.expires for row in chosen), default=math.inf)
        return left, joined

    def _replace(self, chosen: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Make the chosen rows fill 0…n−1; returns who left and who joined.

        Rows that are there already stay where they are; new rows, and old ones from n on, are copied into the gaps.
        """
        n, chosen_set, full = len(chosen), set(chosen), self._buffers.current.full
        left = [row for row in self.rows if row not in chosen_set]
        joined = [row for row in chosen if row.batch_index < 0]
        for row in left:
            if row.queue_seq and row.steps:
                row.request.outputs[row.index] = full[row.batch_index]
            row.batch_index = -1
        gaps = sorted(set(range(n)).difference(row.batch_index for row in chosen))
        to_copy = [row for row in chosen if not 0 <= row.batch_index < n]
        for gap, row in zip(gaps, to_copy, strict=True):
            full[gap] = full[row.batch_index] if row.batch_index >= 0 else row.state
            row.batch_index = gap
        self.rows = sorted(chosen, key=attrgetter("batch_index"))
        return left, joined

    def run_unobserved(self, until: float, interrupt: Sized) -> int:
        """Run steps after which no row has to be looked at on the host; returns how many.

        A step is unobserved if after it no row finishes, is recorded, masked or compared with its tolerance. If the
        model can keep the rows on its device, they are copied back only after the last of these steps.

        Args:
            until: time on the scheduler's clock after which no further step begins.
            interrupt: no further step begins once this has items: new requests have arrived.

        Returns:
            The number of steps; 0 if the next step must be observed, its model call failed, or new requests arrived.
            Then the caller runs `step`, which also finds the rows that a failure is about.
        """
        max_steps = self._steps_until_observed()
        device_batch: DeviceBatch | None = getattr(self._model, "device_batch", None)
        if device_batch is not None and max_steps > 1 and not self._retry_stepwise:
            steps = self._run_on_device(device_batch, max_steps, until, interrupt)
        else:
            steps = self._run_on_host(max_steps, until, interrupt)
        if steps:
            for row in self.rows:
                row.steps += steps
        return steps

    def _run_on_device(self, device_batch: DeviceBatch, max_steps: int, until: float, interrupt: Sized) -> int:
        """Run steps with the rows in device memory.

        A failure of one step keeps the steps before it. If the rows cannot be copied back or are not finite then, all
        these steps are dropped, and the buffer still has the rows from before. Both set `_retry_stepwise`.
        """
        if interrupt:
            return 0
        rows, padded = len(self.rows), len(self._buffers.current.padded)
        steps, began = 0, self._clock()

        def keep_going() -> bool:  # called after every step
            nonlocal steps, began
            now = self._clock()
            self._on_model_call(rows, padded, now - began, self._reason(rows))
            steps, began = steps + 1, now
            return steps < max_steps and not interrupt and now < until

        try:
            device_batch.upload(self._buffers.current.padded)
            device_batch.run_steps(keep_going)
        except Exception as exc:  # `step` finds out which rows it is about
            self._retry_stepwise = True
            logger.warning("steps on the device failed, and are repeated one by one: %s", _reason_of(exc))
        try:
            if steps:
                device_batch.download(self._buffers.next.padded)
        except Exception:
            self._retry_stepwise, steps = True, 0
        if steps and not self._buffers.is_finite():
            self._retry_stepwise, steps = True, 0
        if steps:
            self._buffers.swap()
        return steps

    def _run_on_host(self, max_steps: int, until: float, interrupt: Sized) -> int:
        """Run steps with the rows copied back after each; ends before a step that fails or is not finite."""
        steps = 0
        while steps < max_steps and not interrupt and self._run_whole(self._buffers):
            self._buffers.swap()
            steps += 1
            if self._clock() >= until:
                break
        return steps

    def step(self) -> list[tuple[Row, IgnError]]:
        """Run one step; returns the rows on which the model failed.

        The caller must then close the requests of those rows, :meth:`remove` the `rows_on_lost_device` if there are
        any, and call :meth:`commit`.
        """
        failed: list[tuple[Row, IgnError]] = []
        self._run_bisecting(0, len(self.rows), failed)
        if not self._buffers.is_finite():
            # The buffer of failed and lost rows holds old values. Nobody waits for rows of closed requests.
            others = {*(row for row, _ in failed), *self.rows_on_lost_device}
            rows = self._buffers.next.rows
            for row in self.rows:
                if not (row.request.closed or row in others or np.isfinite(rows[row.batch_index]).all()):
                    failed.append((row, row.not_finite_error()))
        return failed

    def remove(self, rows: Sequence[Row]) -> list[Row]:
        """Remove rows that another device is to continue; returns those that are not done.

        Must be called before :meth:`commit`, or between steps: the state of a row is that before its unfinished step.
        """
        unfinished = [row for row in rows if not row.done]
        for row in unfinished:
            if row.steps:
                row.request.outputs[row.index] = self._buffers.current.full[row.batch_index]
        for row in rows:
            row.batch_index = -1
        self.rows = [row for row in self.rows if row.batch_index >= 0]
        self.rows_on_lost_device = [row for row in self.rows_on_lost_device if row.batch_index >= 0]
        self.needs_rebuild = True
        return unfinished

    def remove_finished(self) -> None:
        """Remove rows that need no further step: done rows, and rows of closed requests."""
        if not self.needs_rebuild:
            return
        for row in self.rows:
            if row.done or row.request.closed:
                row.batch_index = -1
        # The indices of the others may have gaps now, hence `needs_rebuild` stays set.
        self.rows = [row for row in self.rows if row.batch_index >= 0]
        if not self.rows:
            self.needs_rebuild, self.expires = False, math.inf

    def commit(self) -> tuple[list[Row], list[tuple[ScheduledRequest, StepOutput]]]:
        """Record the results of the latest :meth:`step`, and make its output the current rows.

        Returns: the rows that are done, and the steps that are recorded or that a stream gets.
        """
        outputs = list[tuple[ScheduledRequest, StepOutput]]()
        # The change by the first step is a result, and so is that by the extra step of a score.
        measured = [row.batch_index for row in self.rows if (row.steps == 0 or row.scoring) and not row.request.closed]
        if len(measured) == len(self._buffers.next.rows):
            self._buffers.measure(0, len(measured))
        else:
            for index in measured:
                self._buffers.measure(index, index + 1)
        finished, others = commit_single_steps(self.rows, self._buffers.next.rows, self._buffers.changes)
        for row in others:
            request = row.request
            if request.closed:
                continue
            if row.scoring:  # this step was the extra one that measures the drift
                request.drift[row.index] = self._buffers.changes[row.batch_index]
                row.done = True
            else:
                output = self._commit_row(row)
                if output is not None:
                    outputs.append((request, output))
            if row.done:
                finished.append(row)
        self.needs_rebuild = self.needs_rebuild or bool(finished)
        self._buffers.swap()
        return finished, outputs

    def _commit_row(self, row: Row) -> StepOutput | None:
        request, i = row.request, row.index
        params, step_params = request.params, request.params.step_params
        y = self._buffers.next.rows[row.batch_index]
        first = row.steps == 0
        if first:
            request.distance[i] = self._buffers.changes[row.batch_index]  # of f(x) itself, before the mask
        if params.keep_mask is not None:
            first = False  # the mask alters the change
            np.copyto(y, request.inputs[i], where=params.keep_mask[i])
        row.steps += 1
        is_last = row.steps == step_params.steps
        is_output = row.is_recorded() or (is_last and request.params.streamed)
        change = None
        if is_output or step_params.tolerance is not None:
            if not first:
                self._buffers.measure(row.batch_index, row.batch_index + 1)
            change = float(self._buffers.changes[row.batch_index])
        converged = step_params.tolerance is not None and change is not None and change < step_params.tolerance
        if is_last or converged:
            row.finish_steps(y, converged=converged)
        if is_output or (converged and request.params.streamed):
            return row.record_step(y, change)
        return None

    def _steps_until_observed(self) -> int:
        """How many steps from now on are unobserved."""
        steps = sys.maxsize
        for row in self.rows:
            steps = min(steps, row.steps_to_next_check() - 1)
            if steps == 0:
                break
        return steps

    def _reason(self, rows: int) -> str:
        return "full" if rows >= self.limit else "drained"

    def _padded(self, n: int) -> int:
        """The smallest bucket for ``n`` rows; ``n`` itself without buckets, or above the largest one."""
        buckets = self._model.buckets
        if buckets is None:
            return n
        index = bisect_left(buckets, n)
        return buckets[index] if index < len(buckets) else n

    def _run_whole(self, buffers: BatchBuffers) -> bool:
        """Call the model once for all rows in use; returns whether that gave finite values."""
        rows = len(buffers.current.rows)
        try:
            self._call_model(buffers.current.padded, buffers.next.padded, rows, self._reason(rows))
        except Exception:  # `step` repeats the call and finds out which rows it is about
            return False
        return buffers.is_finite()

    def _call_model(self, x: FloatRows, out: FloatRows, rows: int, reason: str) -> None:
        began = self._clock()
        y = self._model.run(x, out)
        if y.shape != out.shape:
            raise ValueError(f"the model answered {y.shape} to {x.shape}")
        if y is not out:
            np.copyto(out, y)
        self._on_model_call(rows, len(x), self._clock() - began, reason)

    def _run_bisecting(self, start: int, end: int, failed: list[tuple[Row, IgnError]]) -> None:
        """Run one step for the rows start…end−1. If the call fails, run each half, down to single rows.

        So one bad row costs about 2·log₂(n) further calls, and only its own request fails. A part larger than `limit`,
        which a device out of memory has lowered, is halved without a call.
        """
        can_split = end - start > 1
        try:
            if end - start <= self.limit:
                self._call_part(start, end)
                return
        except DeviceLost as exc:  # every further call would fail too
            self.device_lost = exc
            self.rows_on_lost_device += self.rows[start:end]
            return
        except DeviceOutOfMemory as exc:
            cause: Exception = exc
            can_split = self._reduce_limit(end - start) and can_split
        except Exception as exc:  # whatever the model raises is about these rows, not about the service
            cause = exc
        if can_split:
            middle = (start + end) // 2
            self._run_bisecting(start, middle, failed)
            self._run_bisecting(middle, end, failed)
            return
        for row in self.rows[start:end]:
            failure = ModelFailure("the model failed on this row", reason=_reason_of(cause))
            failure.__cause__ = cause
            failed.append((row, failure))

    def _call_part(self, start: int, end: int) -> None:
        n = end - start
        if n == len(self.rows):
            self._call_model(self._buffers.current.padded, self._buffers.next.padded, n, self._reason(n))
            return
        # A part is not at the start of the buffer and has its own padding, so it is copied.
        x = np.empty((self._padded(n), *self._model.shape), np.float32)
        x[:n] = self._buffers.current.rows[start:end]
        x[n:] = x[:1]
        out = np.empty_like(x)
        self._call_model(x, out, n, "retry")
        self._buffers.next.rows[start:end] = out[:n]

    def _reduce_limit(self, rows: int) -> bool:
        """After ``rows`` rows did not fit the device, continue with smaller batches; False if the model cannot."""
        half = self._padded(rows) // 2
        try:
            self._model.reduce_max_batch()
        except Exception:
            logger.exception("the model could not recover from running out of memory")
            return False
        self.limit = max(1, min(largest_batch(self._model, self.limit), half))
        self.needs_rebuild = True
        return True


def _reason_of(exc: Exception) -> str:
    """What the model said, as one line for the operator."""
    reason = exc.reason if isinstance(exc, ModelFailure) else str(exc)
    return "".join(reason.splitlines()[:1])[:_MAX_REASON] or type(exc).__name__
