"""What a step of f means for rows. Batches, and images of any size, share it.

A row x that has had k steps, and y = f(x):

    k = 0        distance = mean |y − x|
    mask         pixels of the input are put back in y
    k + 1        change = mean |y − x|; the row has converged if it is below the tolerance
    the end      once it has converged, or after the last step
    `score`      one more y: drift = mean |y − x|
"""

import math
from collections.abc import Sequence
from copy import copy
from itertools import groupby, product
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRows
from service.domain.tasks import Images, KeepMask, Result, StepOutput, StepParams

# Numbers of the scratch array of differences: 128 KiB, so that it stays in the core's cache.
_SCRATCH: Final = 16_384

Changes = NDArray[np.float64]  # (N,): mean |y − x| of each row


def mean_changes(y: FloatRows, x: FloatRows) -> Changes:
    """Mean |y − x| of every row, in float64, summed row by row, independent of the batch."""
    size = math.prod(y.shape[1:])
    changes = np.zeros(len(y), np.float64)
    count = max(1, _SCRATCH // size)
    before = x.reshape(-1, size)
    after = y.reshape(-1, size)
    for start, place in product(range(0, len(y), count), range(0, size, _SCRATCH)):
        rows = slice(start, start + count)
        part = slice(place, place + _SCRATCH)
        difference = np.subtract(after[rows, part], before[rows, part], dtype=np.float64)
        np.abs(difference, out=difference)
        changes[rows] += np.add.reduce(difference, axis=1)
    changes /= size
    return changes


class StepRequest:
    """What is asked of the rows of a request, and their results so far: an entry for each row."""

    # Most requests have one step and stay together, and then it is made at once.
    result: Result  # so far

    def __init__(
        self,
        count: int,
        step_params: StepParams,
        *,
        masked: bool,
        streamed: bool,
        exact: bool = False,
    ) -> None:
        self.count = count
        self.step_params = step_params
        self.streamed = streamed
        # f(f(x)) = f(x): steps after the first one need no call, unless a mask changes pixels.
        self.exact = exact and not masked
        # Model steps of each row, at most.
        self.row_steps = 1 if self.exact else step_params.steps + step_params.score
        # One model step, of which only the result is wanted.
        self.is_plain = (
            self.row_steps == 1
            and not (masked or streamed)
            and not (step_params.score or step_params.record)
            and step_params.tolerance is None
        )
        self.trajectory: list[list[StepOutput]] = [[] for _ in range(count)]

    def allocate(self, rows: Images) -> None:
        """Make the result, with ``rows`` to be filled."""
        self.result = Result(
            rows=rows,
            steps=np.zeros(self.count, np.int64),
            converged=np.zeros(self.count, np.bool_),
            distance=np.zeros(self.count),
            drift=np.zeros(self.count) if self.step_params.score else None,
            trajectory=self.trajectory,
        )


class RowSteps:
    """Neighbouring rows (N, C, H, W) of a request, from ``start`` on, with the same steps."""

    def __init__(
        self, request: StepRequest, start: int, inputs: FloatRows, keep: KeepMask | None
    ) -> None:
        self.request = request
        self.start = start
        self.count = len(inputs)
        self.inputs = inputs
        self.keep = keep
        self.rows = inputs  # after `steps` steps
        self.steps = 0
        self.recorded = 0  # entries of `StepParams.record` that have been recorded
        self.scoring = False  # all steps are applied, and one more model call measures the drift
        self.done = False  # the rows need no further model call

    def after(self, y: FloatRows, changes: Changes) -> tuple[Sequence[Self], list[StepOutput]]:
        """Take ``y`` = f(rows) as the next step. It may be written to.

        ``changes`` is mean |y − rows| of each row. Returns the rows, cut where they part, and what
        is recorded or streamed of them.
        """
        request = self.request
        if request.is_plain and self.count == request.count:
            request.allocate(y)
            # More than one step if the request is exact.
            request.result.steps[:] = request.step_params.steps
            request.result.distance = changes
            self.steps = 1
            self.done = True
            return (self,), []
        parts, shown = self._after(y, changes)
        if request.exact:
            # Further steps change nothing: all rows of a part converge in one of them, or none.
            for part in parts:
                unchanged = np.zeros(part.count)
                while not part.done:
                    part.steps += part.steps_to_next_check() - 1
                    shown += part._after(part.rows, unchanged)[1]
        return parts, shown

    def cut(self, count: int) -> Self:
        """Split off the first ``count`` rows."""
        request = self.request
        if request.is_plain and self.count == request.count:
            request.allocate(np.empty(self.inputs.shape, np.float32))
        head = copy(self)
        head.count = count
        head.rows = self.rows[:count]
        head.inputs = self.inputs[:count]
        self.start += count
        self.count -= count
        self.rows = self.rows[count:]
        self.inputs = self.inputs[count:]
        if self.keep is not None:
            head.keep = self.keep[:count]
            self.keep = self.keep[count:]
        return head

    def steps_to_next_check(self) -> int:
        """Model calls until the values are needed, that call included; ≥ 1."""
        # The first step is measured (`distance`), tolerance and mask need every step, a recorded
        # step is copied, and the last step is the result.
        step_params = self.request.step_params
        needs_all = step_params.tolerance is not None or self.keep is not None
        if self.steps == 0 or self.scoring or needs_all:
            return 1
        record = step_params.record
        next_check = record[self.recorded] if self.recorded < len(record) else step_params.steps
        return next_check - self.steps

    def is_recorded(self) -> bool:
        """Whether the caller asked to record the step that the rows are at."""
        record = self.request.step_params.record
        return self.recorded < len(record) and record[self.recorded] == self.steps

    def record(self, changes: Changes | None) -> list[StepOutput]:
        """The rows as they are now; keeps them in the trajectory if the step is a recorded one."""
        outputs = list[StepOutput]()
        numbers = [None] * self.count if changes is None else changes.tolist()
        is_recorded = self.is_recorded()
        # A view would hold the rows of others, too.
        base = self.rows.base
        is_whole = isinstance(base, np.ndarray) and base.size == self.rows.size
        rows = self.rows if is_whole else self.rows.copy()
        for index, (row, change) in enumerate(zip(rows, numbers, strict=True), self.start):
            outputs.append(StepOutput(index=index, step=self.steps, row=row, change=change))
            if is_recorded:
                self.request.trajectory[index].append(outputs[-1])
        self.recorded += is_recorded
        return outputs

    def _after(self, y: FloatRows, changes: Changes) -> tuple[Sequence[Self], list[StepOutput]]:
        request = self.request
        step_params = request.step_params
        mine = slice(self.start, self.start + self.count)
        if self.scoring:
            assert request.result.drift is not None  # noqa: S101 - as `score` is set
            request.result.drift[mine] = changes
            self.done = True
            return (self,), []
        if self.steps == 0:
            request.result.distance[mine] = changes
        if self.keep is not None:
            np.copyto(y, self.inputs, where=self.keep)
            changes = mean_changes(y, self.rows)
        self.rows = y
        self.steps += 1
        is_last = self.steps == step_params.steps
        near = [False] * self.count
        if step_params.tolerance is not None:
            near = (changes < step_params.tolerance).tolist()
        parts = list[Self]()
        shown = list[StepOutput]()
        for converged, run in groupby(near):
            count = len(list(run))
            part = self if count == self.count else self.cut(count)
            if is_last or converged:
                part._end(converged=converged)
            if part.is_recorded() or (request.streamed and (is_last or converged)):
                shown += part.record(changes[:count])
            changes = changes[count:]
            parts.append(part)
        return parts, shown

    def _end(self, *, converged: bool) -> None:
        # The rows are done unless their drift is still to be measured.
        result = self.request.result
        mine = slice(self.start, self.start + self.count)
        result.rows[mine] = self.rows
        result.steps[mine] = self.steps
        result.converged[mine] = converged
        self.scoring = self.request.step_params.score
        self.done = not self.scoring
