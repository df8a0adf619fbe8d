"""The running batch: the rows on one device, and what one step does to them.

A *step* applies f once to every row of the batch; it is one model call unless a part of the batch fails. A batch
belongs to the thread of its worker. Others only read `slices` and set `needs_rebuild`.
"""

import contextlib
import logging
import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import groupby
from operator import attrgetter
from typing import Final

import numpy as np

from service.domain.errors import IgnError, InvalidContent, ModelFailure
from service.domain.latents import LARGE, FloatRows
from service.domain.model import DeviceBatch, DeviceLost, DeviceOutOfMemory, Model, largest_batch
from service.scheduling.request import Outputs, ScheduledRequest, Slice

logger = logging.getLogger(__name__)

_MAX_REASON: Final = 400  # characters
_SCRATCH: Final = 16_384  # numbers of the scratch array of differences: 128 KiB, so that it stays in the core's cache
_place = attrgetter("at")

OnModelCall = Callable[[int, int, float, str], None]
"""Called after every model call: rows, rows with padding, seconds, why the batch had that size."""


class BatchBuffers:
    """The two buffers (N, C, H, W) of a batch, N with its padding, and what is computed from both."""

    # A step allocates nothing.
    #
    #     step     the model reads `current` and writes `next`, then they swap their names
    #     rebuild  rows leave or join between two steps: the rows that stay move only if there is a gap before them
    #
    #                            A A B C C . . .        current: B is done, D joins
    #                            │ │   └┐└┐
    #                            A A   C  C  D . .      next, which becomes `current`
    def __init__(self, shape: tuple[int, ...]) -> None:
        # Zeros, because `measure` also reads rows of failed calls, to which nothing has been written.
        self.current, self.next = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.n = self.padded = 0  # rows in use, without and with padding
        size = math.prod(shape[1:])
        self._differences = np.empty((max(1, _SCRATCH // size), size), np.float64)
        # (N): of rows for which `measure` was called, mean |y − x| of the step from `current` to `next`
        self.changes = np.empty(shape[0], np.float64)
        self._finite_flags = np.empty(shape, np.bool_)

    def swap(self) -> None:
        """Make the result of a step the rows of the next one."""
        self.current, self.next = self.next, self.current

    def measure(self, start: int, end: int) -> None:
        """Set `changes` of these rows to the mean |y − x| in float64, summed row by row, independent of the batch."""
        differences, size = self._differences, self._differences.shape[1]
        x, y = self.current.reshape(-1, size), self.next.reshape(-1, size)
        for first in range(start, end, len(differences)):
            part = slice(first, min(end, first + len(differences)))
            difference = differences[: part.stop - first]
            np.subtract(y[part], x[part], out=difference, dtype=np.float64)
            np.abs(difference, out=difference)
            np.add.reduce(difference, axis=1, out=self.changes[part])
        self.changes[start:end] /= size

    def is_finite(self) -> bool:
        """Whether every value of the rows in `next` is finite."""
        return bool(np.isfinite(self.next[: self.n], out=self._finite_flags[: self.n]).all())


class RunningBatch:
    """The rows that one device computes, as slices of requests."""

    def __init__(self, model: Model, max_rows: int, clock: Callable[[], float], on_model_call: OnModelCall) -> None:
        self._model, self._clock, self._on_model_call = model, clock, on_model_call
        self.limit = largest_batch(model, max_rows)  # a device out of memory lowers it
        self._buffers = BatchBuffers((self._padded(self.limit), *model.shape))
        # In the order of their rows in the buffers; there are gaps where rows have left since the last rebuild.
        self.slices: list[Slice] = []
        self.needs_rebuild = False  # a row is done or its request closed, or the batch is larger than `limit`
        self.expires = math.inf  # when the first request of the batch expires
        self.device_lost: DeviceLost | None = None
        self._lost: list[tuple[int, int]] = []  # first row and end of each call that the device was lost in
        self._retry_stepwise = False  # an unobserved step of these rows failed: run them with `step` from now on

    @property
    def row_count(self) -> int:
        """Rows in the batch."""
        return sum([piece.count for piece in self.slices])

    def rebuild(self, chosen: Sequence[Slice]) -> tuple[list[Slice], list[Slice]]:
        """Make ``chosen`` the rows of the batch; returns the slices that left and those that joined."""
        left, stay = list[Slice](), list[Slice]()
        if self.slices:
            chosen_set = set(chosen)
            left = [piece for piece in self.slices if piece not in chosen_set]
            stay = sorted([piece for piece in chosen if piece.at >= 0], key=_place)
            self._save([piece for piece in left if piece.seq])  # queued again
            for piece in left:
                piece.at = -1
        joined = [piece for piece in chosen if piece.at < 0]
        buffers, n = self._buffers, self._place_rows(stay, joined)
        buffers.n, buffers.padded = n, self._padded(n) if n else 0
        # Padding repeats a real row: any other values could be out of the model's range.
        buffers.current[n : buffers.padded] = buffers.current[:1]
        self.needs_rebuild = self._retry_stepwise = False
        self.expires = min([piece.request.expires for piece in chosen], default=math.inf)
        return left, joined

    def _place_rows(self, stay: list[Slice], joined: list[Slice]) -> int:
        # Slices stand side by side. Those that join are copied, and, if there is a gap, those that stay.
        buffers, end, has_gap = self._buffers, 0, False
        for piece in stay:
            has_gap = has_gap or piece.at != end
            end += piece.count
        parts = [buffers.current[piece.at : piece.at + piece.count] for piece in stay] if has_gap else []
        for piece in joined:  # in no batch: before the first step the inputs have the rows, then the outputs
            source = piece.request.outputs if piece.steps else piece.request.inputs
            parts.append(source if piece.count == len(source) else source[piece.start : piece.start + piece.count])
        start, target = (0, buffers.next) if has_gap else (end, buffers.current)
        self.slices, at = stay + joined, 0
        for piece in self.slices:
            piece.at = at
            at += piece.count
        if parts:
            np.concatenate(parts, out=target[start:at])
        if has_gap:
            buffers.swap()
        return at

    def _save(self, slices: Iterable[Slice]) -> None:
        for piece in slices:
            if piece.steps:  # before the first step the inputs have them
                rows = self._buffers.current[piece.at : piece.at + piece.count]
                piece.request.outputs[piece.start : piece.start + piece.count] = rows

    def run_unobserved(self, until: float, interrupt: Sized) -> int:
        """Run steps after which no row has to be looked at on the host; returns how many.

        No further step begins after the time ``until``, or once ``interrupt`` has items: new requests have arrived. If
        no step was run, the next one must be observed or has failed. Then the caller runs `step`, which also finds the
        rows that a failure is about.
        """
        # A step is unobserved if after it no row finishes, is recorded, masked or compared with its tolerance. If the
        # model can keep the rows on its device, they are copied back only after the last of these steps.
        max_steps = sys.maxsize
        for piece in self.slices:
            max_steps = min(max_steps, piece.steps_to_next_check() - 1)
            if max_steps == 0:
                return 0
        device_batch: DeviceBatch | None = getattr(self._model, "device_batch", None)
        if device_batch is not None and max_steps > 1 and not self._retry_stepwise:
            steps = self._run_on_device(device_batch, max_steps, until, interrupt)
        else:
            steps = self._run_on_host(max_steps, until, interrupt)
        if steps:
            for piece in self.slices:
                piece.steps += steps
        return steps

    def _run_on_device(self, device_batch: DeviceBatch, max_steps: int, until: float, interrupt: Sized) -> int:
        # A step that fails keeps those before it. If the rows cannot be copied back or are not finite, all these steps
        # are dropped, and the buffer still has the rows from before. Both set `_retry_stepwise`.
        if interrupt:
            return 0
        buffers = self._buffers
        rows, padded, steps, began = buffers.n, buffers.padded, 0, self._clock()

        def keep_going() -> bool:  # called after every step
            nonlocal steps, began
            now = self._clock()
            self._on_model_call(rows, padded, now - began, self._reason(rows))
            steps, began = steps + 1, now
            return steps < max_steps and not interrupt and now < until

        try:
            device_batch.upload(buffers.current[:padded])
            device_batch.run_steps(keep_going)
        except Exception as exc:  # `step` finds out which rows it is about
            self._retry_stepwise = True
            logger.warning("steps on the device failed, and are repeated one by one: %s", _reason_of(exc))
        if steps == 0:
            return 0
        with contextlib.suppress(Exception):
            device_batch.download(buffers.next[:padded])
            if buffers.is_finite():
                buffers.swap()
                return steps
        self._retry_stepwise = True
        return 0

    def _run_on_host(self, max_steps: int, until: float, interrupt: Sized) -> int:
        steps = 0
        # A step that fails is left to `step`, which repeats the call and finds out which rows it is about.
        with contextlib.suppress(Exception):
            while steps < max_steps and not interrupt:
                self._call_part(0, self._buffers.n)
                if not self._buffers.is_finite():
                    break
                self._buffers.swap()
                steps += 1
                if self._clock() >= until:
                    break
        return steps

    def step(self) -> list[tuple[ScheduledRequest, IgnError]]:
        """Run one step; returns for every row on which the model failed its request and the error.

        The caller must then close those requests, :meth:`remove_lost` and call :meth:`commit`.
        """
        failed, n = dict[int, IgnError](), self._buffers.n
        self._run_bisecting(0, n, failed)
        if not self._buffers.is_finite():
            # The buffer of failed and lost rows holds old values. Nobody waits for rows of closed requests.
            ignored = {*failed, *(index for lost in self._lost for index in range(*lost))}
            finite = np.isfinite(self._buffers.next[:n]).reshape(n, -1).all(axis=1)
            for index in np.flatnonzero(~finite).tolist():
                if index not in ignored and not self._slice_at(index).request.closed:
                    failed[index] = self._not_finite_error(index)
        return [(self._slice_at(index).request, error) for index, error in sorted(failed.items())]

    def _slice_at(self, index: int) -> Slice:
        return self.slices[bisect_right(self.slices, index, key=_place) - 1]

    def _not_finite_error(self, index: int) -> IgnError:
        # The caller's fault, if the first step overflows from values that no seed and no image has.
        if self._slice_at(index).steps == 0 and np.abs(self._buffers.current[index]).max() > LARGE:
            return InvalidContent(f"f of these rows is not finite: they hold values beyond ±{LARGE:.0f}")
        return ModelFailure("the model gave values that are not finite")

    def remove_lost(self) -> list[Slice]:
        """Remove the rows of calls that the device was lost in; returns them, as they were before the step."""
        for index in {index for call in self._lost for index in call}:  # cut slices that such a call had a part of
            piece = self._slice_at(index)
            if piece.at < index < piece.at + piece.count:
                self.slices.insert(self.slices.index(piece), piece.cut(index - piece.at))
        lost = [piece for piece in self.slices if any(start <= piece.at < end for start, end in self._lost)]
        self._lost = []
        return self.remove(lost)

    def remove(self, slices: Sequence[Slice]) -> list[Slice]:
        """Remove slices that another device is to continue, before :meth:`commit` or between steps; returns them."""
        self._save(slices)
        self._leave(slices)
        return [*slices]

    def remove_finished(self) -> None:
        """Remove rows that need no further step: done rows, and rows of closed requests."""
        if self.needs_rebuild:
            self._leave([piece for piece in self.slices if piece.done or piece.request.closed])

    def _leave(self, slices: Sequence[Slice]) -> None:
        for piece in slices:
            piece.at = -1
        self.slices = [piece for piece in self.slices if piece.at >= 0]
        self.needs_rebuild = bool(self.slices)  # there may be gaps between them
        if not self.slices:
            self.expires = math.inf

    def commit(self) -> tuple[list[Slice], Outputs]:
        """Record the results of :meth:`step`; returns the slices that are done, and the steps recorded or streamed."""
        buffers, outputs = self._buffers, Outputs()
        # The change by the first step is a result, and so is that by the extra step of a score.
        measured = [piece for piece in self.slices if piece.steps == 0 or piece.scoring]
        if len(measured) == len(self.slices):
            buffers.measure(0, buffers.n)
        else:
            for piece in measured:
                buffers.measure(piece.at, piece.at + piece.count)
        slices = list[Slice]()
        for piece in self.slices:
            closed = piece.request.closed
            parts = (piece,) if closed else self._commit_slice(piece, outputs)
            if piece.request.exact and not (closed or (parts[0] is piece and piece.done)):
                parts = [self._commit_rest(part, outputs) for part in parts]
            slices += parts
        self.slices = slices
        finished = [piece for piece in slices if piece.done]
        self.needs_rebuild = self.needs_rebuild or bool(finished)
        buffers.swap()
        return finished, outputs

    def _commit_slice(self, piece: Slice, outputs: Outputs) -> Sequence[Slice]:
        request, buffers = piece.request, self._buffers
        changes = buffers.changes[piece.at : piece.at + piece.count]
        rows = buffers.next[piece.at : piece.at + piece.count]
        if request.is_plain and piece.count == len(request.inputs):
            request.outputs, request.distance = rows.copy(), changes.copy()
            steps = request.params.step_params.steps  # more than 1 if the request is exact
            request.steps, request.converged = np.full(piece.count, steps), np.zeros(piece.count, np.bool_)
            piece.steps, piece.done = 1, True
            return (piece,)
        step_params, mask = request.params.step_params, request.params.keep_mask
        mine = slice(piece.start, piece.start + piece.count)
        if piece.scoring:  # this step was the extra one that measures the drift
            request.drift[mine] = changes
            piece.done = True
            return (piece,)
        if piece.steps == 0:
            request.distance[mine] = changes  # of f(x) itself, before the mask
        if mask is not None:
            np.copyto(rows, request.inputs[mine], where=mask[mine])
            if piece.at == 0:  # the padding repeats this row
                buffers.next[buffers.n : buffers.padded] = rows[:1]
        piece.steps += 1
        is_last = piece.steps == step_params.steps
        if step_params.tolerance is not None or step_params.record or (is_last and request.params.streamed):
            return self._observe(piece, outputs, is_last=is_last)
        if is_last:
            piece.finish(rows, converged=False)
        return (piece,)

    def _commit_rest(self, piece: Slice, outputs: Outputs) -> Slice:
        """Record the further steps of an exact request, which change nothing."""
        mine = slice(piece.at, piece.at + piece.count)
        self._buffers.current[mine], self._buffers.changes[mine] = self._buffers.next[mine], 0.0
        while not piece.done:
            piece.steps += piece.steps_to_next_check() - 1
            (piece,) = self._commit_slice(piece, outputs)  # all rows are alike: either all of them converge, or none
        return piece

    def _observe(self, piece: Slice, outputs: Outputs, *, is_last: bool) -> list[Slice]:
        request, changes = piece.request, self._buffers.changes
        streamed, tolerance = request.params.streamed, request.params.step_params.tolerance
        if piece.steps > 1 or request.params.keep_mask is not None:  # `commit` has measured a first step, but no mask
            self._buffers.measure(piece.at, piece.at + piece.count)
        parts = list[Slice]()
        near = [False] * piece.count
        if tolerance is not None:
            near = (changes[piece.at : piece.at + piece.count] < tolerance).tolist()
        for converged, run in groupby(near):
            count = len(list(run))
            part = piece if count == piece.count else piece.cut(count)
            rows = self._buffers.next[part.at : part.at + count]
            if is_last or converged:
                part.finish(rows, converged=converged)
            if part.is_recorded() or (streamed and (is_last or converged)):
                steps = part.record(rows, changes[part.at : part.at + count])
                outputs += [(request, output) for output in steps]
            parts.append(part)
        return parts

    def _reason(self, rows: int) -> str:
        return "full" if rows >= self.limit else "drained"

    def _padded(self, n: int) -> int:
        # The smallest bucket for n rows; n itself without buckets, or above the largest one.
        buckets = self._model.buckets or ()
        index = bisect_left(buckets, n)
        return buckets[index] if index < len(buckets) else n

    def _call_model(self, x: FloatRows, out: FloatRows, rows: int, reason: str) -> None:
        began = self._clock()
        y = self._model.run(x, out)
        if y.shape != out.shape:
            raise ValueError(f"the model gave {y.shape} for {x.shape}")
        if y is not out:
            np.copyto(out, y)
        self._on_model_call(rows, len(x), self._clock() - began, reason)

    def _run_bisecting(self, start: int, end: int, failed: dict[int, IgnError]) -> None:
        # If the call for the rows start…end−1 fails, run each half, down to single rows: one bad row costs about
        # 2·log₂(n) further calls, and only its own request fails. A part larger than `limit`, which a device out of
        # memory has lowered, is halved without a call.
        #
        #     0 1 2 3 4 5 6 7    fails, and 5 is the bad row
        #     0 1 2 3 │ 4 5 6 7          the right half fails
        #               4 5 │ 6 7        the left one
        #               4 │ 5            5 fails alone
        #
        # Errors lose their frames, which hold the rows and the error itself: such a cycle is hardly ever collected.
        can_split = end - start > 1
        try:
            if end - start <= self.limit:
                self._call_part(start, end)
                return
        except DeviceLost as exc:  # every further call would fail too
            self.device_lost = exc.with_traceback(None)
            self._lost.append((start, end))
            return
        except DeviceOutOfMemory as exc:
            cause: Exception = exc.with_traceback(None)
            can_split = self._reduce_limit(end - start) and can_split
        except Exception as exc:  # whatever the model raises is about these rows, not about the service
            cause = exc.with_traceback(None)
        if can_split:
            middle = (start + end) // 2
            self._run_bisecting(start, middle, failed)
            self._run_bisecting(middle, end, failed)
            return
        for index in range(start, end):
            failed[index] = model_failure("the model failed on this row", cause)

    def _call_part(self, start: int, end: int) -> None:
        n, buffers = end - start, self._buffers
        if n == buffers.n:
            self._call_model(buffers.current[: buffers.padded], buffers.next[: buffers.padded], n, self._reason(n))
            return
        # A part is not at the start of the buffer and has its own padding, so it is copied.
        x = np.empty((self._padded(n), *self._model.shape), np.float32)
        x[:n] = buffers.current[start:end]
        x[n:] = x[:1]
        out = np.empty_like(x)
        self._call_model(x, out, n, "retry")
        buffers.next[start:end] = out[:n]

    def _reduce_limit(self, rows: int) -> bool:
        # After so many rows did not fit the device, continue with smaller batches; False if the model cannot.
        half = self._padded(rows) // 2
        try:
            self._model.reduce_max_batch()
        except Exception:
            logger.exception("the model could not recover from running out of memory")
            return False
        self.limit = max(1, min(largest_batch(self._model, self.limit), half))
        self.needs_rebuild = True
        return True


def model_failure(text: str, cause: BaseException) -> ModelFailure:
    """A failure whose reason, for the operator, is what the model raised."""
    failure = ModelFailure(text, reason=_reason_of(cause))
    failure.__cause__ = cause
    return failure


def _reason_of(exc: BaseException) -> str:
    reason = exc.reason if isinstance(exc, ModelFailure) else str(exc)
    return "".join(reason.splitlines()[:1])[:_MAX_REASON] or type(exc).__name__
