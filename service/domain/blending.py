"""Post-processing of results: mix with the inputs (`strength`), repeat the first frame (`loop`)."""

import dataclasses

import numpy as np

from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Result, StepOutput


def blend(start: FloatRow, end: FloatRow, strength: float) -> FloatRow:
    """(1 − s)·x + s·f^k(x) of one row (C, H, W), for strength s in 0…1; exact at 0 and 1."""
    if strength == 1.0:
        return end
    if strength == 0.0:
        return start
    s = np.float32(strength)
    blended: FloatRow = (np.float32(1.0) - s) * start + s * end
    return blended


def blend_step(inputs: FloatRows, step: StepOutput, strength: float) -> StepOutput:
    """A recorded step, blended with its row of ``inputs`` (N, C, H, W); step 0 is the input and stays as it is."""
    if step.step == 0 or strength == 1.0:
        return step
    return dataclasses.replace(step, row=blend(inputs[step.index], step.row, strength))


def blend_result(inputs: FloatRows, result: Result, strength: float) -> Result:
    """A result whose rows and trajectory are blended with ``inputs`` (N, C, H, W)."""
    if strength == 1.0:
        return result
    rows = np.stack([blend(start, end, strength) for start, end in zip(inputs, result.rows, strict=True)])
    trajectory = [[blend_step(inputs, step, strength) for step in steps] for steps in result.trajectory]
    return dataclasses.replace(result, rows=rows, trajectory=trajectory)


def close_loop(result: Result) -> Result:
    """The result with its first row repeated at the end, as the last frame of a closed path."""
    order = [*range(len(result.rows)), 0]
    return dataclasses.replace(
        result,
        rows=result.rows[order],
        steps=result.steps[order],
        converged=result.converged[order],
        distance=result.distance[order],
        drift=None if result.drift is None else result.drift[order],
        trajectory=[result.trajectory[i] for i in order] if result.trajectory else [],
    )
