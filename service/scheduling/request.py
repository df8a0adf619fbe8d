"""A request, the slices of its rows, its results so far, and batches of slices. All belongs to the event loop."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import IgnError
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress
from service.scheduling.observer import Finished

Event = StepOutput | StreamProgress | Result | IgnError
"""What a caller receives of a request. The last event is a `Result` or an error."""


@dataclass(slots=True)
class Counters:
    """What is open: in all, of one caller, or of one request."""

    rows: int = 0  # admitted and not finished
    steps: int = 0  # model steps that these rows still need, at most
    in_batch: int = 0  # how many of these rows are in a batch that runs

    @property
    def waiting(self) -> int:
        """Rows that are in no batch that runs."""
        return self.rows - self.in_batch


class Slice:
    """Neighbouring rows of a request that have had the same steps. Batches and the queue consist of slices."""

    # A request begins as one slice, and most of them stay so: one copy into the batch, none out of it. A slice is
    # cut where its rows part: a batch has room for some, some have converged, or the device of some is lost. Slices are
    # never joined again, so a request has at most as many slices as rows.
    #
    #     request    0  1  2  3  4  5  6  7
    #     slices    [0  1  2][3  4  5  6  7]      start, count: 0, 3 and 3, 5
    #                   │           └── seq > 0: it waits in the queue
    #                   └── batch: a lane has it
    __slots__ = ("batch", "count", "done", "recorded", "request", "rows", "scoring", "seq", "start", "steps")

    def __init__(self, request: "ScheduledRequest", start: int, count: int) -> None:
        self.request, self.start, self.count = request, start, count
        inputs = request.inputs
        self.rows = inputs if count == len(inputs) else inputs[start : start + count]  # after `steps` steps
        self.steps = self.recorded = 0  # steps applied, and entries of `StepParams.record` that have been recorded
        self.scoring = False  # all steps are applied, and one more model call measures the drift
        self.done = False  # the rows need no further model call
        self.seq = 0  # number of the slice's entry in the queue; 0 while it is in none
        self.batch: Batch | None = None  # that a lane has

    def cut(self, count: int) -> "Slice":
        """Split off the first ``count`` rows; returns them as a slice that is in no queue and no batch."""
        if self.count == len(self.request.inputs) and self.request.is_plain:
            self.request.allocate()
        head = Slice(self.request, self.start, count)
        head.steps, head.recorded, head.scoring = self.steps, self.recorded, self.scoring
        head.rows, self.rows = self.rows[:count], self.rows[count:]
        self.start += count
        self.count -= count
        self.request.slices.append(head)
        return head

    def steps_to_next_check(self) -> int:
        """Model calls until the values are needed, that call included; ≥ 1."""
        # The first step is measured (`distance`), tolerance and mask need every step, a recorded step is copied, and
        # the last step is the result.
        params = self.request.params
        step_params = params.step_params
        if self.steps == 0 or self.scoring or step_params.tolerance is not None or params.keep_mask is not None:
            return 1
        record = step_params.record
        next_check = record[self.recorded] if self.recorded < len(record) else step_params.steps
        return next_check - self.steps

    def is_recorded(self) -> bool:
        """Whether the caller asked to record the step that the rows are at."""
        record = self.request.params.step_params.record
        return self.recorded < len(record) and record[self.recorded] == self.steps

    def record(self, changes: NDArray[np.float64] | None) -> list[StepOutput]:
        """Copy the rows as they are now, and keep them in the trajectory if the step is a recorded one."""
        outputs, numbers = list[StepOutput](), [None] * self.count if changes is None else changes.tolist()
        is_recorded = self.is_recorded()
        for index, (row, change) in enumerate(zip(self.rows.copy(), numbers, strict=True), self.start):
            outputs.append(StepOutput(index=index, step=self.steps, row=row, change=change))
            if is_recorded:
                self.request.trajectory[index].append(outputs[-1])
        self.recorded += is_recorded
        return outputs

    def finish(self, *, converged: bool) -> None:
        """Store the results of the last step. The rows are done unless their drift is still to be measured."""
        request, mine = self.request, slice(self.start, self.start + self.count)
        request.outputs[mine] = self.rows
        request.steps[mine] = self.steps
        request.converged[mine] = converged
        self.scoring = request.params.step_params.score
        self.done = not self.scoring


class ModelCall(NamedTuple):
    """One call of the model."""

    rows: int  # without padding
    padded: int
    seconds: float
    reason: str  # as of `SchedulerObserver.batch`
    ended: float


@dataclass(slots=True, eq=False)
class Batch:
    """The rows of some slices, side by side, and how often f is applied to all of them at most.

    The event loop makes it and gives it to a lane, which alone changes it until it is delivered.
    """

    slices: Sequence[Slice]
    rows: int
    steps: int  # after which a value is needed: at most so many are run
    expires: float  # no step begins after this time
    reason: str
    is_stopped: bool = False  # set by the event loop: no further step begins

    # What the lane delivers.
    began: float = 0.0
    done: int = 0  # steps that were run; 0 if the batch was stopped, or had expired, before the first one
    y: FloatRows | None = None  # after the last step; rows of failed and lost ones are those before it
    changes: NDArray[np.float64] | None = None  # mean |y − x| of every row in the last step
    failed: dict[int, IgnError | None] = field(default_factory=dict)  # by row; None: values that are not finite
    lost: list[tuple[int, int]] = field(default_factory=list)  # first row and end of calls that the device was lost in
    calls: list[ModelCall] = field(default_factory=list)
    limit: int = 0  # rows of the lane's largest batch from now on
    device_lost: DeviceLost | None = None
    death: BaseException | None = None  # what ended the thread


class ScheduledRequest:
    """The rows of one request, whose results are delivered together. Times are those of the scheduler's clock."""

    # Of the results. Most requests have one step and stay in one slice, and then all are set at once.
    outputs: FloatRows
    steps: NDArray[np.int64]
    converged: NDArray[np.bool_]
    distance: NDArray[np.float64]
    drift: NDArray[np.float64]

    def __init__(self, inputs: FloatRows, params: SchedulingParams, *, arrived: float, exact: bool = False) -> None:
        n, step_params = len(inputs), params.step_params
        self.inputs, self.params, self.arrived = inputs, params, arrived
        self.deadline = math.inf if params.deadline is None else params.deadline
        self.expires = self.deadline  # set to infinity at the first event of a stream
        self.timeout_at = math.inf  # `deadline` as a time of the event loop
        self.started: float | None = None  # when the first row entered a batch
        # f(f(x)) = f(x): the steps after the first one need no model call, unless a mask puts pixels back.
        self.exact = exact and params.keep_mask is None
        self.row_steps = 1 if self.exact else step_params.steps + step_params.score  # model steps of each row, at most
        self.is_plain = (  # one model step, of which only the result is wanted
            self.row_steps == 1
            and not step_params.score
            and step_params.tolerance is None
            and params.keep_mask is None
            and not (step_params.record or params.streamed)
        )
        self.rows_left = n  # rows that are not done
        self.closed = False
        self.open = Counters(n, n * self.row_steps)
        self.caller = self.open  # the counters of the caller, once the request is admitted
        self.slices: list[Slice] = []
        # Without recorded steps nothing is appended, so the rows share one list.
        self.trajectory: list[list[StepOutput]] = [[] for _ in range(n)] if step_params.record else [[]] * n

    def begin(self) -> Slice:
        """The slice of all rows, at first."""
        whole = Slice(self, 0, len(self.inputs))
        self.slices.append(whole)
        if not self.is_plain:
            self.allocate()
        return whole

    def allocate(self) -> None:
        """Make the arrays of the results, for rows that end at different times."""
        n = len(self.inputs)
        self.outputs = np.empty(self.inputs.shape, np.float32)
        self.steps, self.converged = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        self.distance, self.drift = np.zeros(n), np.zeros(n if self.params.step_params.score else 0)

    def promises(self) -> Iterator[tuple[int, int, float]]:
        """Fewest model steps of a row, of all rows, and the time until which they must be applied.

        A tolerance may be met after one step. Later requests follow this one until the last deadline.
        """
        params, step_params, n = self.params, self.params.step_params, len(self.inputs)
        steps = self.row_steps if step_params.tolerance is None or self.exact else 1 + step_params.score
        if params.deadline is not None:
            first, later = (1, 0) if params.streamed else (steps, 0 if params.stream_deadline else params.later_rows)
            yield first, n * first + later, params.deadline
        if params.stream_deadline is not None:
            yield steps, n * steps + params.later_rows, params.stream_deadline

    def progress(self) -> StreamProgress:
        """Steps of the slowest row, and the number of finished rows."""
        n, steps = len(self.inputs), self.params.step_params.steps
        slowest = min((part.steps for part in self.slices if not part.done), default=steps)
        return StreamProgress(steps_done=slowest, steps=steps, rows_done=n - self.rows_left, rows=n)

    def result(self, now: float) -> Result:
        """The result, once every row is done."""
        started = now if self.started is None else self.started
        return Result(
            rows=self.outputs,
            steps=self.steps,
            converged=self.converged,
            distance=self.distance,
            drift=self.drift if self.params.step_params.score else None,
            trajectory=self.trajectory,
            queue_s=started - self.arrived,
            compute_s=now - started,
        )

    def finished(self, outcome: Result | IgnError, now: float) -> Finished:
        """What observers count of this request, which ended at time ``now``; reports the end to its own observer."""
        started = now if self.started is None else self.started
        code = outcome.error_code if isinstance(outcome, IgnError) else "ok"
        if self.params.observer is not None:
            self.params.observer.scheduled(self.arrived, self.started, now, code)
        return Finished(len(self.inputs), code, started - self.arrived, now - started)


Outputs = list[tuple[ScheduledRequest, StepOutput]]
Events = list[tuple[ScheduledRequest, Event]]
OnEvents = Callable[[Events], None]
"""Receives the events of requests in their order; that of the scheduler on the event loop, once in a turn."""
