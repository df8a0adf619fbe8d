"""What the scheduler is asked to do and what it answers: frozen, always valid.

A *row* is one C×H×W float32 image in the model's range; a *step* is one application of f.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRow, FloatRows
from service.domain.model import DeviceBatch, DeviceLost, DeviceOutOfMemory, Model, once

KeepMask = NDArray[np.bool_]  # (N, 1 or C, H, W): True = keep the starting pixel, put back after every step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParams:
    """How f is to be applied to every row of a request.

    Args:
        steps: applications of f, ≥ 1.
        tolerance: > 0 stops a row once mean |f(y) − y| of its last step is below it; None never stops early.
        record: ascending unique step numbers in 0…steps whose rows are wanted as trajectory; 0 is the input.
        score: also measure drift, mean |f(y) − y| of the output, at the price of one more step.
    """

    steps: int
    tolerance: float | None = None
    record: tuple[int, ...] = ()
    score: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError("tolerance must be above 0")
        if any(b <= a for a, b in zip(self.record, self.record[1:], strict=False)):
            raise ValueError("record must be ascending and unique")
        if self.record and not (self.record[0] >= 0 and self.record[-1] <= self.steps):
            raise ValueError("record must lie in 0…steps")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SchedulingParams:
    """One request as the scheduler sees it.

    Args:
        applied: steps, tolerance, record, score.
        keep: pixels to put back after every step, or None; its row count equals the rows'.
        deadline: absolute time on the scheduler's clock after which the rows must not be run, or None.
        key: the caller's fairness key.
        progress: ask :meth:`Scheduler.stream` for `StreamProgress` events too.
    """

    step_params: StepParams
    keep: KeepMask | None = None
    deadline: float | None = None
    key: str = ""
    progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepOutput:
    """A recorded step of one row, as soon as it exists.

    Args:
        index: the row's place in the request.
        step: which step; 0 is the prepared input.
        row: (C, H, W).
        change: mean |x_k − x_{k−1}| after the mask is put back; None at step 0.
    """

    index: int
    step: int
    row: FloatRow
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProgress:
    """How far a request is: steps of its slowest row, and rows already finished."""

    steps_done: int
    steps: int
    rows_done: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """Everything known of a finished request; arrays have one entry per row, in request order.

    Args:
        rows: (N, C, H, W), after the last step applied and mask put-back.
        steps: steps applied.
        converged: the row met ``tolerance`` and stopped so.
        distance: mean |f(x) − x| of the first step, before the mask.
        drift: mean |f(y) − y| of the output, or None unless asked for.
        trajectory: recorded steps by row.
        queue_s: seconds from submission until its first row entered a batch.
        compute_s: seconds from then until its last row was done.
    """

    rows: FloatRows
    steps: NDArray[np.int64]
    converged: NDArray[np.bool_]
    distance: NDArray[np.float64]
    drift: NDArray[np.float64] | None
    trajectory: Sequence[Sequence[StepOutput]]
    queue_s: float
    compute_s: float


class SchedulerLike(Protocol):
    """The seam between engine and scheduler. Cancelling the awaiting call is the cancellation."""

    def check_capacity(self, rows: int) -> None:
        """Raise what `submit` would raise for so many rows, before they are made."""
        ...

    async def submit(self, rows: FloatRows, params: SchedulingParams) -> Result:
        """Run rows to the end of their plan."""
        ...

    def stream(
        self, rows: FloatRows, params: SchedulingParams
    ) -> AsyncGenerator[StepOutput | StreamProgress | Result, None]:
        """The same, yielding recorded steps as they exist; the last item is the `Result`."""
        ...


__all__ = [
    "StepParams",
    "DeviceLost",
    "DeviceOutOfMemory",
    "KeepMask",
    "Model",
    "SchedulingParams",
    "StreamProgress",
    "DeviceBatch",
    "Result",
    "SchedulerLike",
    "StepOutput",
    "once",
]
