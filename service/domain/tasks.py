"""The scheduler's requests and results, frozen and valid once they exist; and what is done to
results afterwards.

A *row* is one C×H×W float32 image in the model's range; a *step* is one application of f.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRow, FloatRows

Images = FloatRows | list[FloatRow]  # (N, C, H, W), or a list if their sizes may differ
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# (N, 1 or C, H, W): True = the pixel of the input is put back after every step
KeepMask = NDArray[np.bool_]


# Requests make some of these classes, which nobody changes. They are not frozen: that triples the
# time of making one.


@dataclass(slots=True, kw_only=True)
class StepParams:
    """How f is applied to every row of a request."""

    steps: int  # applications of f, ≥ 1
    # > 0: a row stops once mean |f(y) − y| of its last step is below it
    tolerance: float | None = None
    record: tuple[
        int, ...
    ] = ()  # ascending unique numbers in 0…steps of the steps in the trajectory; 0 is the input
    score: bool = False  # also measure the drift, which costs one more step


class RequestObserver(Protocol):
    """Hears how one request fared in the scheduler."""

    def scheduled(
        self, submitted: float, started: float | None, ended: float, outcome: str
    ) -> None:
        """The request ended; called once, from any thread, with times on the scheduler's clock.

        ``started`` is when the first row entered a batch, None if none did; ``ended``, when the
        last row was done or the request failed. ``outcome`` is `ok`, `cancelled` or an error code.
        """


@dataclass(slots=True, kw_only=True, eq=False)
class SchedulingParams:
    """One request as the scheduler sees it."""

    step_params: StepParams
    keep_mask: KeepMask | None = None
    # time on the scheduler's clock after which the rows must not be run
    deadline: float | None = None
    key: str = ""  # the caller's fairness key: batches are divided equally between keys
    # The caller gets recorded steps, last steps and progress as events while the rows run. The
    # deadline then bounds the wait for the first event only.
    streamed: bool = False
    stream_deadline: float | None = None  # of the last event
    # model steps of rows that follow in further requests, to be done by the same deadline
    later_rows: int = 0
    observer: RequestObserver | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepOutput:
    """One row after one of its steps."""

    index: int  # of the row in the request
    step: int  # 0 is the prepared input
    row: FloatRow
    change: float | None  # mean |x_k − x_{k−1}| after the mask is put back; None at step 0


class StreamProgress(NamedTuple):
    """How far a request is: steps of its slowest row out of ``steps``, and finished rows out of
    ``rows``.
    """

    steps_done: int
    steps: int
    rows_done: int
    rows: int


@dataclass(slots=True, kw_only=True, eq=False)
class Result:
    """A finished request. Arrays have one entry per row, in the order of the request."""

    rows: Images  # after the last step and the mask
    steps: NDArray[np.int64]  # applied
    converged: NDArray[np.bool_]  # whether the row stopped because it met the tolerance
    distance: NDArray[np.float64]  # mean |f(x) − x| of the first step, before the mask
    # mean |f(y) − y| of the output; None unless `StepParams.score` is set
    drift: NDArray[np.float64] | None
    trajectory: Sequence[Sequence[StepOutput]]  # the recorded steps of each row
    queue_s: float = 0.0  # seconds from submission until the first row entered a batch
    compute_s: float = 0.0  # seconds from then until the last row was done


def split_luma(image: FloatRow) -> tuple[FloatRow, FloatRow | None]:
    """The luma (1, H, W) of a colour image (3, H, W), and its chroma for `shown_row`; None if the
    image is grey.

    Luma is Y of ITU-R BT.601, as JPEG and Pillow have it: 0.299·R + 0.587·G + 0.114·B in the full
    range.
    """
    if np.array_equal(image[:1], image[1:2]) and np.array_equal(image[:1], image[2:]):
        return np.ascontiguousarray(image[:1]), None
    luma: FloatRow = np.tensordot(_LUMA, image, axes=1)[None]
    return luma, image - luma


def shown_row(
    start: FloatRow, end: FloatRow, strength: float = 1.0, chroma: FloatRow | None = None
) -> FloatRow:
    """What a caller gets of a row x = ``start`` (C, H, W) that became f^k(x) = ``end``.

    It is (1 − s)·x + s·f^k(x), for strength s in 0…1; exact at 0 and 1. A ``chroma`` (3, H, W)
    makes it the image of this luma: to a change of Y alone, YCbCr adds the same to R, G and B.
    """
    row = start if strength == 0.0 else end
    if 0.0 < strength < 1.0:
        s = np.float32(strength)
        row = (np.float32(1.0) - s) * start + s * end
    return row if chroma is None else row + chroma


def shown_step(
    step: StepOutput, inputs: Images, strength: float, chroma: Sequence[FloatRow | None]
) -> StepOutput:
    """A recorded step as `shown_row` of its row of ``inputs``; step 0 is the input, which is not
    blended. An empty ``chroma`` is that of grey images.
    """
    colour = chroma[step.index] if chroma else None
    row = shown_row(inputs[step.index], step.row, strength if step.step else 1.0, colour)
    return replace(step, row=row)


def shown_result(
    result: Result, inputs: Images, strength: float, chroma: Sequence[FloatRow | None]
) -> Result:
    """A result whose rows and trajectory are `shown_row` of ``inputs``."""
    is_grey = all(each is None for each in chroma)
    rows = [
        shown_row(start, end, strength, colour)
        for start, end, colour in zip(inputs, result.rows, chroma or repeat(None), strict=False)
    ]
    trajectory = [
        [shown_step(step, inputs, strength, chroma) for step in steps]
        for steps in result.trajectory
    ]
    is_array = is_grey and not isinstance(inputs, list)  # else sizes may differ
    return replace(result, rows=np.stack(rows) if is_array else rows, trajectory=trajectory)
