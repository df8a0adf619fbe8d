"""Rows that run: what one pass does to them.

A *pass* is one call of the model, one step of f for every row of the batch. Like `service.scheduling.queue`, this belongs to the
executor thread alone.
"""

import logging
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence, Sized
from typing import NamedTuple

import numpy as np

from service.domain.errors import ModelFailure
from service.domain.latents import FloatRows
from service.domain.model import DeviceBatch, DeviceLost, DeviceOutOfMemory, Model
from service.domain.tasks import StepOutput
from service.scheduling.request import Row, ScheduledRequest

logger = logging.getLogger(__name__)


class _Side(NamedTuple):
    """One of the two buffers a pass goes between, as views: all of it, what the model sees, rows that count."""

    full: FloatRows
    padded: FloatRows
    rows: FloatRows

    def cut(self, n: int, padded: int) -> "_Side":
        return _Side(self.full, self.full[:padded], self.full[:n])


def largest_batch(model: Model, max_rows: int) -> int:
    """Most rows a batch may have: ``max_rows``, or the model's top bucket if that is less."""
    return max_rows if model.buckets is None else min(max_rows, model.buckets[-1])


Ran = Callable[[int, int, float, str], None]
"""Told of every call of the model: rows, rows after padding, seconds, why the batch was that large."""


class RunningBatch:
    """The rows in the device's hands.

    They lie side by side in one of two buffers; a pass reads one and writes the other. A row that stays from one
    pass to the next is not copied.

    Args:
        model: the network.
        max_rows: largest batch wanted; the model's top bucket may lower it, and so does a device out of memory.
        clock: seconds, for the duration of calls.
        ran: told of every call.
    """

    def __init__(self, model: Model, max_rows: int, clock: Callable[[], float], ran: Ran) -> None:
        self._model, self._clock, self._ran = model, clock, ran
        self.limit = largest_batch(model, max_rows)
        shape = (self._padded(self.limit), *model.shape)
        a, b = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._now, self._next = _Side(a, a[:0], a[:0]), _Side(b, b[:0], b[:0])
        self._wide = np.empty(model.shape, np.float64)
        self._flags = np.empty(shape, np.bool_)
        self.rows: list[Row] = []
        self.stale = False  # somebody in it is done, or it is larger than the limit
        self.lost: DeviceLost | None = None  # the device does nothing any more
        self.stranded: list[Row] = []  # what it was lost with: as their last pass left them
        self._suspect = False  # a pass of these rows failed where nobody looked: from now on, look
        self.expires = math.inf

    def arrange(self, chosen: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Make ``chosen`` the batch; returns those who left it and those who joined it.

        Whoever leaves and still waits is saved to its request.
        """
        n, wanted = len(chosen), set(chosen)
        full = self._now.full
        left = [row for row in self.rows if row not in wanted]
        joined = [row for row in chosen if row.slot < 0]
        for row in left:
            if row.ticket:
                row.request.out[row.index] = full[row.slot]
            row.slot = -1
        free = sorted(set(range(n)).difference(row.slot for row in chosen))
        movers = [row for row in chosen if not 0 <= row.slot < n]
        for slot, row in zip(free, movers, strict=True):
            full[slot] = full[row.slot] if row.slot >= 0 else row.state
            row.slot = slot
        self.rows = sorted(chosen, key=lambda row: row.slot)
        padded = self._padded(n) if n else 0
        full[n:padded] = full[:1]
        self._now, self._next = self._now.cut(n, padded), self._next.cut(n, padded)
        self.stale = self._suspect = False
        self.expires = min((row.request.expires for row in chosen), default=math.inf)
        return left, joined

    def cruise(self, until: float, interrupt: Sized) -> int:
        """Run passes after which nobody has to look at any row; returns how many.

        Ends early at time ``until``, when ``interrupt`` is no longer empty, and before a pass that fails. That one,
        and the pass somebody waits for, are left to :meth:`advance`. Where the model can keep the rows on its device
        meanwhile, they come back at the end.
        """
        quiet = self._quiet()
        resident: DeviceBatch | None = getattr(self._model, "resident", None)
        if resident is not None and quiet > 1 and not self._suspect:
            passes = self._cruise_there(resident, quiet, until, interrupt)
        else:
            passes = self._cruise_here(quiet, until, interrupt)
        if passes:
            for row in self.rows:
                row.steps += passes
        return passes

    def _cruise_there(self, resident: DeviceBatch, quiet: int, until: float, interrupt: Sized) -> int:
        """The rows stay on the device. What is wrong with them shows when they are back; then all of it is undone."""
        if interrupt:
            return 0
        rows, padded, reason = len(self.rows), len(self._now.padded), self._reason()
        passes, began = 0, self._clock()

        def more() -> bool:
            nonlocal passes, began
            now = self._clock()
            self._ran(rows, padded, now - began, reason)
            passes, began = passes + 1, now
            return passes < quiet and not interrupt and now < until

        try:
            resident.load(self._now.padded)
            resident.steps(more)
        except Exception:  # advance() finds out what it is about
            self._suspect = True
        try:
            if passes:
                resident.fetch(self._next.padded)
        except Exception:
            self._suspect, passes = True, 0
        if passes and not self._finite():
            self._suspect, passes = True, 0
        if passes:
            self._now, self._next = self._next, self._now
        return passes

    def _cruise_here(self, quiet: int, until: float, interrupt: Sized) -> int:
        """The rows come back after every pass."""
        passes = 0
        while passes < quiet and not interrupt:
            try:
                self._call(self._now.padded, self._next.padded, len(self.rows), self._reason())
            except Exception:
                break
            if not self._finite():
                break
            self._now, self._next = self._next, self._now
            passes += 1
            if self._clock() >= until:
                break
        return passes

    def advance(self) -> list[tuple[Row, ModelFailure]]:
        """Run one pass; returns the rows on which the model failed.

        :meth:`settle` must follow; before it :meth:`release`, if there are any that are `stranded`.
        """
        failed: list[tuple[Row, ModelFailure]] = []
        self._apply(0, len(self.rows), failed)
        if not self._finite():
            ended = {*(row for row, _ in failed), *self.stranded}
            for row in self.rows:
                if row not in ended and not np.isfinite(self._next.rows[row.slot]).all():
                    failed.append((row, ModelFailure("the model gave values that are not finite")))
        return failed

    def release(self, rows: Sequence[Row]) -> list[Row]:
        """Take rows out as their last pass left them; returns those that are not done."""
        waiting = [row for row in rows if not row.done]
        for row in waiting:
            if row.steps:
                row.request.out[row.index] = self._now.full[row.slot]
        for row in rows:
            row.slot = -1
        self.rows = [row for row in self.rows if row.slot >= 0]
        self.stranded = [row for row in self.stranded if row.slot >= 0]
        self.stale = True
        return waiting

    def remove_finished(self) -> None:
        """Take out the rows that need no further pass: done ones, and those of closed requests."""
        if not self.stale:
            return
        staying: list[Row] = []
        for row in self.rows:
            if row.done or row.request.closed:
                row.slot = -1
            else:
                staying.append(row)
        self.rows = staying
        if not staying:
            self.stale, self.expires = False, math.inf

    def settle(self) -> tuple[list[Row], list[tuple[ScheduledRequest, StepOutput]]]:
        """Book the pass just run: returns the rows that are done and the steps somebody wants to see."""
        finished: list[Row] = []
        steps: list[tuple[ScheduledRequest, StepOutput]] = []
        for row in self.rows:
            request = row.request
            if request.closed:
                continue
            if row.scoring:
                request.drift[row.index] = self._gap(row.slot)
                row.done = True
            else:
                step = self._step(row)
                if step is not None:
                    steps.append((request, step))
            if row.done:
                finished.append(row)
                self.stale = True
        self._now, self._next = self._next, self._now
        return finished, steps

    def _step(self, row: Row) -> StepOutput | None:
        request, i = row.request, row.index
        params, step_params = request.params, request.params.step_params
        y = self._next.rows[row.slot]
        if row.steps == 0:
            request.distance[i] = self._gap(row.slot)
        if params.keep is not None:
            np.copyto(y, request.rows[i], where=params.keep[i])
        row.steps += 1
        ended = row.steps == step_params.steps
        shown = row.recorded() or (ended and request.streamed)
        change = self._gap(row.slot) if shown or step_params.tolerance is not None else None
        converged = step_params.tolerance is not None and change is not None and change < step_params.tolerance
        if ended or converged:
            row.finish(y, converged=converged)
        if shown or (converged and request.streamed):
            return row.capture(y, change)
        return None

    def _gap(self, slot: int) -> float:
        """Mean |y − x| over C·H·W in float64, row by row, so that it does not depend on the neighbours."""
        wide = self._wide
        np.subtract(self._next.rows[slot], self._now.rows[slot], out=wide, dtype=np.float64)
        np.abs(wide, out=wide)
        return float(np.add.reduce(wide, axis=None)) / wide.size

    def _quiet(self) -> int:
        quiet = sys.maxsize
        for row in self.rows:
            quiet = min(quiet, row.due() - 1)
            if quiet == 0:
                break
        return quiet

    def _finite(self) -> bool:
        rows = self._next.rows
        return bool(np.isfinite(rows, out=self._flags[: len(rows)]).all())

    def _reason(self) -> str:
        return "full" if len(self.rows) >= self.limit else "drained"

    def _padded(self, n: int) -> int:
        buckets = self._model.buckets
        if buckets is None:
            return n
        place = bisect_left(buckets, n)
        return buckets[place] if place < len(buckets) else n

    def _call(self, x: FloatRows, out: FloatRows, rows: int, reason: str) -> None:
        began = self._clock()
        y = self._model.run(x, out)
        if y is not out:
            if y.shape != out.shape:
                raise ValueError(f"the model answered {y.shape} to {x.shape}")
            np.copyto(out, y)
        self._ran(rows, len(x), self._clock() - began, reason)

    def _apply(self, lo: int, hi: int, failed: list[tuple[Row, ModelFailure]]) -> None:
        """One step for slots lo…hi−1, in halves where the whole fails, until the failing row stands alone."""
        divisible = hi - lo > 1
        try:
            if hi - lo <= self.limit:
                self._call_part(lo, hi)
                return
        except DeviceLost as exc:
            self.lost = exc
            self.stranded += self.rows[lo:hi]
            return
        except DeviceOutOfMemory as exc:
            cause: Exception = exc
            divisible = self._shed(hi - lo) and divisible
        except Exception as exc:  # whatever the model raises is about these rows, not about the service
            cause = exc
        if divisible:
            middle = (lo + hi) // 2
            self._apply(lo, middle, failed)
            self._apply(middle, hi, failed)
            return
        for row in self.rows[lo:hi]:
            failure = ModelFailure("the model failed on this row")
            failure.__cause__ = cause
            failed.append((row, failure))

    def _call_part(self, lo: int, hi: int) -> None:
        n = hi - lo
        if n == len(self.rows):
            self._call(self._now.padded, self._next.padded, n, self._reason())
            return
        x = np.empty((self._padded(n), *self._model.shape), np.float32)
        x[:n] = self._now.rows[lo:hi]
        x[n:] = x[:1]
        out = np.empty_like(x)
        self._call(x, out, n, "retry")
        self._next.rows[lo:hi] = out[:n]

    def _shed(self, rows: int) -> bool:
        """Go on with smaller batches; False if the model cannot."""
        half = self._padded(rows) // 2
        try:
            self._model.reduce_max_batch()
        except Exception:
            logger.exception("the model could not recover from running out of memory")
            return False
        self.limit = max(1, min(largest_batch(self._model, self.limit), half))
        self.stale = True
        return True
