"""A request, the slices of its rows, its results so far, batches of slices, and what is told of
their failures. All belongs to the event loop.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import IgnError, InvalidContent, ModelFailure
from service.domain.latents import LARGE, FloatRows
from service.domain.model import DeviceLost
from service.domain.steps import RowSteps, StepRequest
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress
from service.scheduling.report import Finished, ModelCall

_MAX_REASON: Final = 400  # characters

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


class Slice(RowSteps):
    """Neighbouring rows of a request that have had the same steps. Batches and the queue consist of
    slices.
    """

    # A request begins as one slice, and most of them stay so: one copy into the batch, none out of
    # it. A slice is cut where its rows part: a batch has room for some, or some have converged.
    # Slices are never joined again, so a request has at most as many slices as rows.
    #
    #     request    0  1  2  3  4  5  6  7
    #     slices    [0  1  2][3  4  5  6  7]      start, count: 0, 3 and 3, 5
    #                   │           └── seq > 0: it waits in the queue
    #                   └── batch: a lane has it

    request: "ScheduledRequest"

    def __init__(self, request: "ScheduledRequest") -> None:
        super().__init__(request, 0, request.inputs, request.params.keep_mask)
        self.seq = 0  # number of the slice's entry in the queue; 0 while it is in none
        self.batch: Batch | None = None  # that a lane has

    def cut(self, count: int) -> "Slice":
        """Split off the first ``count`` rows of a slice in no batch; returns them as one in no
        queue.
        """
        head = super().cut(count)
        head.seq = 0
        self.request.slices.append(head)
        return head

    def not_finite_error(self, index: int, steps: int) -> IgnError:
        """The error of a row that is not finite after ``steps`` further steps."""
        # The caller's fault, if the first step overflows from values that no seed and no image has.
        if self.steps == 0 and steps == 1 and np.abs(self.rows[index]).max() > LARGE:
            return InvalidContent(
                f"f of these rows is not finite: they hold values beyond ±{LARGE:.0f}"
            )
        return ModelFailure("the model gave values that are not finite")


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
    # steps that were run; 0 if the batch was stopped, or had expired, before the first one
    done: int = 0
    # if steps were run, after the last one; rows of failed ones are those before it
    y: FloatRows = field(init=False)
    changes: NDArray[np.float64] = field(init=False)  # mean |y − x| of every row in the last step
    # by row; None: values that are not finite
    failed: dict[int, IgnError | None] = field(default_factory=dict)
    calls: list[ModelCall] = field(default_factory=list)
    device_lost: DeviceLost | None = None
    death: BaseException | None = None  # what ended the thread

    def errors(self) -> dict["ScheduledRequest", IgnError]:
        """The error of the first failed row of each request."""
        errors = dict[ScheduledRequest, IgnError]()
        at = 0
        for piece in self.slices:
            for index in range(piece.count):
                if at + index in self.failed:
                    error = self.failed[at + index] or piece.not_finite_error(index, self.done)
                    errors.setdefault(piece.request, error)
            at += piece.count
        return errors

    def commit(self) -> "Outputs":
        """Take what was delivered as the next steps of `slices`, which are cut where their rows
        part. Those of closed requests are left out. Returns what is recorded or streamed.
        """
        slices = list[Slice]()
        outputs = Outputs()
        at = 0
        for piece in self.slices:
            mine = slice(at, at + piece.count)
            at += piece.count
            if piece.request.closed:
                continue
            piece.steps += self.done - 1  # of which no value was needed
            parts, shown = piece.after(self.y[mine], self.changes[mine])
            slices += parts
            outputs += [(piece.request, output) for output in shown]
        self.slices = slices
        return outputs


class ScheduledRequest(StepRequest):
    """The rows of one request, whose results are delivered together. Times are those of the
    scheduler's clock.
    """

    def __init__(
        self, inputs: FloatRows, params: SchedulingParams, *, arrived: float, exact: bool = False
    ) -> None:
        masked = params.keep_mask is not None
        super().__init__(
            len(inputs), params.step_params, masked=masked, streamed=params.streamed, exact=exact
        )
        self.inputs = inputs
        self.params = params
        self.arrived = arrived
        self.deadline = math.inf if params.deadline is None else params.deadline
        self.expires = self.deadline  # set to infinity at the first event of a stream
        self.started: float | None = None  # when the first row entered a batch
        self.rows_left = self.count  # rows that are not done
        self.closed = False
        self.open = Counters(self.count, self.count * self.row_steps)
        self.caller = self.open  # the counters of the caller, once the request is admitted
        self.slices: list[Slice] = []

    def begin(self) -> Slice:
        """The slice of all rows, at first."""
        whole = Slice(self)
        self.slices.append(whole)
        if not self.is_plain:
            self.allocate(np.empty(self.inputs.shape, np.float32))
        return whole

    def promises(self) -> Iterator[tuple[int, int, float]]:
        """Fewest model steps of a row, of all rows, and the time until which they must be applied.

        A tolerance may be met after one step. Later requests follow this one until the last
        deadline.
        """
        params = self.params
        n = self.count
        steps = self.row_steps
        if self.step_params.tolerance is not None and not self.exact:
            steps = 1 + self.step_params.score
        if params.deadline is not None:
            first = 1 if params.streamed else steps
            later = 0 if params.stream_deadline else params.later_rows
            yield first, n * first + later, params.deadline
        if params.stream_deadline is not None:
            yield steps, n * steps + params.later_rows, params.stream_deadline

    def progress(self) -> StreamProgress:
        """Steps of the slowest row, and the number of finished rows."""
        n = self.count
        steps = self.step_params.steps
        slowest = min((part.steps for part in self.slices if not part.done), default=steps)
        return StreamProgress(steps_done=slowest, steps=steps, rows_done=n - self.rows_left, rows=n)

    def ended(self, code: str, now: float) -> Finished:
        """What observers count of this request, which ended at time ``now`` with `ok` or the code
        of an error; reports the end to its own observer.
        """
        started = now if self.started is None else self.started
        queue_s = started - self.arrived
        compute_s = now - started
        if code == "ok":
            self.result.queue_s = queue_s
            self.result.compute_s = compute_s
        if self.params.observer is not None:
            self.params.observer.scheduled(self.arrived, self.started, now, code)
        return Finished(self.count, code, queue_s, compute_s)


Outputs = list[tuple[ScheduledRequest, StepOutput]]
Events = list[tuple[ScheduledRequest, Event]]
OnEvents = Callable[[Events], None]
"""Receives the events of requests in their order; that of the scheduler on the event loop, once in
a turn.
"""


def model_failure(text: str, cause: BaseException | None) -> ModelFailure:
    """A failure whose reason, for the operator, is the first line of what the model raised."""
    reason = cause.reason if isinstance(cause, ModelFailure) else str(cause or "")
    if cause is not None:
        reason = "".join(reason.splitlines()[:1])[:_MAX_REASON] or type(cause).__name__
    failure = ModelFailure(text, reason=reason)
    failure.__cause__ = cause
    return failure
