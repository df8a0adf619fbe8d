"""The scheduler's requests and results: frozen, and valid once they exist.

A *row* is one C×H×W float32 image in the model's range; a *step* is one application of f.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRow, FloatRows

KeepMask = NDArray[np.bool_]  # (N, 1 or C, H, W): True = the pixel of the input is put back after every step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParams:
    """How f is applied to every row of a request.

    Args:
        steps: applications of f, ≥ 1.
        tolerance: > 0; a row stops once mean |f(y) − y| of its last step is below it. None: it never stops early.
        record: ascending unique step numbers in 0…steps whose rows form the trajectory; 0 is the input.
        score: also measure the drift, mean |f(y) − y| of the output, which costs one more step.
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


class RequestObserver(Protocol):
    """Hears how one request fared in the scheduler."""

    def scheduled(self, submitted: float, started: float | None, ended: float, outcome: str) -> None:
        """The request ended; called once, from any thread.

        Args:
            submitted: time on the scheduler's clock.
            started: when the first row entered a batch; None if none did.
            ended: when the last row was done or the request failed.
            outcome: `ok`, `cancelled` or an error code.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SchedulingParams:
    """One request as the scheduler sees it.

    Args:
        step_params: how f is applied.
        keep_mask: pixels that are put back after every step, one mask for each row, or None.
        deadline: absolute time on the scheduler's clock after which the rows must not be run, or None.
        key: the caller's fairness key; batches are divided equally between keys.
        streamed: the caller gets recorded steps, last steps and progress as events while the rows run. The deadline
            then bounds the wait for the first event only.
        request_id: names the request in the log if the model fails on it.
        observer: hears how the request fared, or None.
    """

    step_params: StepParams
    keep_mask: KeepMask | None = None
    deadline: float | None = None
    key: str = ""
    streamed: bool = False
    request_id: str = ""
    observer: RequestObserver | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepOutput:
    """One row after one of its steps.

    Args:
        index: the row's index in the request.
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
    """How far a request is: steps of its slowest row out of ``steps``, and finished rows out of ``rows``."""

    steps_done: int
    steps: int
    rows_done: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A finished request. Arrays have one entry per row, in the order of the request.

    Args:
        rows: (N, C, H, W), after the last step and the mask.
        steps: steps applied.
        converged: whether the row stopped because it met the tolerance.
        distance: mean |f(x) − x| of the first step, before the mask.
        drift: mean |f(y) − y| of the output; None unless `StepParams.score` is set.
        trajectory: the recorded steps of each row.
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
