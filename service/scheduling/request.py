"""A request and its rows, as the scheduler sees them."""

import math
from dataclasses import dataclass

import numpy as np

from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress


@dataclass(slots=True)
class Counters:
    """Open rows, the passes they still need in all, and how many of them are in the batch."""

    rows: int = 0
    work: int = 0
    in_batch: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One row on its way: ``ticket`` is not 0 while it waits, ``slot`` not −1 while it is in the batch."""

    request: "ScheduledRequest"
    index: int
    owed: int  # passes still counted in the tallies; belongs to their lock
    steps: int = 0
    captured: int = 0  # entries of `record` already served
    scoring: bool = False  # all steps applied, the drift pass is due
    done: bool = False
    ticket: int = 0
    slot: int = -1

    @property
    def state(self) -> FloatRow:
        """(C, H, W): the row as its last pass left it, valid while it is not in the batch."""
        request = self.request
        row: FloatRow = (request.out if self.steps else request.rows)[self.index]
        return row

    def due(self) -> int:
        """Passes up to and including the next one after which somebody has to look at this row."""
        params = self.request.params
        step_params = params.step_params
        if self.steps == 0 or self.scoring or step_params.tolerance is not None or params.keep is not None:
            return 1
        record = step_params.record
        return (record[self.captured] if self.captured < len(record) else step_params.steps) - self.steps

    def recorded(self) -> bool:
        """Whether the step just reached is one of those asked for."""
        record = self.request.params.step_params.record
        return self.captured < len(record) and record[self.captured] == self.steps

    def capture(self, row: FloatRow, change: float | None) -> StepOutput:
        """Copy the step just reached out of the buffers; keep it if it was asked for."""
        step = StepOutput(index=self.index, step=self.steps, row=row.copy(), change=change)
        if self.recorded():
            self.captured += 1
            self.request.trajectory[self.index].append(step)
        return step

    def finish(self, row: FloatRow, *, converged: bool) -> None:
        """The last step has been applied."""
        request = self.request
        request.out[self.index] = row
        request.steps[self.index] = self.steps
        request.converged[self.index] = converged
        self.scoring = request.params.step_params.score
        self.done = not self.scoring


class ScheduledRequest:
    """The rows that are answered together, and what is known of them so far.

    Args:
        rows: (N, C, H, W) float32; must not change until the request is closed.
        params: what is asked of them.
        streamed: recorded and last steps are wanted as events, and the deadline ends with the first event.
        arrived: time of submission on the scheduler's clock.
    """

    def __init__(self, rows: FloatRows, params: SchedulingParams, *, streamed: bool, arrived: float) -> None:
        n = len(rows)
        self.rows, self.params, self.streamed, self.arrived = rows, params, streamed, arrived
        self.deadline = math.inf if params.deadline is None else params.deadline
        self.expires = self.deadline
        self.started: float | None = None
        self.members = [Row(self, i, params.step_params.steps + params.step_params.score) for i in range(n)]
        self.left = n
        # These belong to the lock of the tallies.
        self.closed, self.open_rows, self.in_batch, self.tally = False, n, 0, Counters()
        self.out = np.empty_like(rows, order="C")
        self.steps = np.zeros(n, np.int64)
        self.converged = np.zeros(n, np.bool_)
        self.distance = np.zeros(n, np.float64)
        self.drift = np.zeros(n, np.float64)
        self.trajectory: list[list[StepOutput]] = [[] for _ in range(n)]

    def passes_to_answer(self) -> int:
        """Fewest passes after which the caller can have what its deadline waits for."""
        step_params, params = self.params.step_params, self.params
        if not self.streamed:
            return (step_params.steps if step_params.tolerance is None else 1) + step_params.score
        if params.progress or step_params.tolerance is not None:
            return 1
        return max(1, step_params.record[0]) if step_params.record else step_params.steps

    def progress(self) -> StreamProgress:
        """Where the request stands."""
        slowest = min((row.steps for row in self.members if not row.done), default=self.params.step_params.steps)
        n = len(self.members)
        return StreamProgress(steps_done=slowest, steps=self.params.step_params.steps, rows_done=n - self.left, rows=n)

    def result(self, now: float) -> Result:
        """The answer, once every row is done."""
        started = now if self.started is None else self.started
        return Result(
            rows=self.out,
            steps=self.steps,
            converged=self.converged,
            distance=self.distance,
            drift=self.drift if self.params.step_params.score else None,
            trajectory=self.trajectory,
            queue_s=started - self.arrived,
            compute_s=now - started,
        )
