"""Requests to rows and back: every endpoint is "make rows, apply f k times, return rows".

The engine knows latents, paths and blending; which rows run next is the scheduler's business, and pictures are the
caller's.
"""

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from service.domain.interpolation import Grid, LatentPath
from service.domain.latents import FloatRow, FloatRows, weighted_sum
from service.domain.tasks import (
    KeepMask,
    Result,
    SchedulerLike,
    SchedulingParams,
    StepOutput,
    StepParams,
    StreamProgress,
)
from service.models.repository import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks, and until when.

    Args:
        key: fairness key.
        deadline: absolute time on the scheduler's clock, or None.
    """

    key: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPoint:
    """A latent by name: number ``index`` of ``seed``."""

    seed: int
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowPoint:
    """A latent given as it is: (C, H, W) float32."""

    row: FloatRow


Point = SeedPoint | RowPoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows on their way to the scheduler, and what their pictures are made of.

    Args:
        rows: (N, C, H, W), the inputs of f.
        applied: how f is applied.
        keep: pixels to put back after every step, or None.
        strength: s of (1−s)·x + s·f^k(x), 0…1; blends pictures, never the rows that f sees.
        repeat_first: the answer ends with its first row once more (a closed loop).
    """

    rows: FloatRows
    step_params: StepParams
    keep: KeepMask | None = None
    strength: float = 1.0
    repeat_first: bool = False

    def blend(self, index: int, row: FloatRow) -> FloatRow:
        """What is shown of f^k(x) of row ``index``; exact at strength 0 and 1."""
        if self.strength == 1.0:
            return row
        start: FloatRow = self.rows[index]
        if self.strength == 0.0:
            return start
        s = np.float32(self.strength)
        mixed: FloatRow = (np.float32(1.0) - s) * start + s * row
        return mixed

    def blend_step(self, step: StepOutput) -> StepOutput:
        """The same for a recorded step; step 0 is the input, and stays as it is."""
        if step.step == 0 or self.strength == 1.0:
            return step
        return dataclasses.replace(step, row=self.blend(step.index, step.row))


@dataclass(slots=True)
class Engine:
    """What the HTTP surface asks for, as methods over the schedulers.

    Args:
        schedulers: of every model that runs, those included that no longer answer to a name and only finish what
            they have. By the model itself: another file under the same name is another model.
    """

    schedulers: dict[LoadedModel, SchedulerLike] = field(default_factory=dict)

    def generate(
        self, model: LoadedModel, *, seed: int, offset: int, n: int, noise_scale: float, step_params: StepParams
    ) -> Batch:
        """Latents ``offset`` … ``offset + n − 1`` of ``seed``."""
        return Batch(rows=model.noise.rows(seed, offset, n, noise_scale), step_params=step_params)

    def interpolate(
        self, model: LoadedModel, points: Sequence[Point], path: LatentPath | Grid, step_params: StepParams
    ) -> Batch:
        """Latents along a path, or over a grid between four corners."""
        ends = [self.latent(model, point) for point in points]
        if isinstance(path, Grid):
            return Batch(rows=path.latents(ends), step_params=step_params)
        return Batch(rows=path.rows(ends), step_params=step_params, repeat_first=path.loop)

    def combine(
        self,
        model: LoadedModel,
        points: Sequence[Point],
        weights: Sequence[float],
        normalize: bool,
        step_params: StepParams,
    ) -> Batch:
        """The weighted sum of latents, with ``normalize`` at the mean length of the model's noise.

        Raises:
            ValueError: the sum is zero.
        """
        rows = [self.latent(model, point) for point in points]
        norm = model.card.noise.norm if normalize else None
        return Batch(rows=weighted_sum(rows, weights, norm)[None], step_params=step_params)

    def latent(self, model: LoadedModel, point: Point) -> FloatRow:
        """The row a point stands for, (C, H, W)."""
        if isinstance(point, SeedPoint):
            return model.noise.row(point.seed, point.index)
        return point.row

    def check_capacity(self, model: LoadedModel, rows: int) -> None:
        """Refuse so many rows for which there is no room, before work goes into making them.

        Raises:
            QueueFull, NotReady, Draining: as `run` would.
        """
        self.schedulers[model].check_capacity(rows)

    async def run(self, model: LoadedModel, batch: Batch, call: Call) -> Result:
        """Apply f to the end of the plan; the result's rows and trajectory are blended and closed as asked.

        Raises:
            IgnError: refused, expired, draining, or the model failed.
        """
        scheduler = self.schedulers[model]
        result = await scheduler.submit(batch.rows, _plan(batch, call))
        return finish(result, batch)

    async def stream(
        self, model: LoadedModel, batch: Batch, call: Call
    ) -> AsyncGenerator[StepOutput | StreamProgress | Result, None]:
        """The same, yielding recorded steps (blended) and progress as they exist; the last item is the `Result`."""
        scheduler = self.schedulers[model]
        # Closing this generator must close the scheduler's at once: that is how its rows are cancelled.
        async with aclosing(scheduler.stream(batch.rows, _plan(batch, call, progress=True))) as events:
            async for event in events:
                if isinstance(event, StepOutput):
                    yield batch.blend_step(event)
                elif isinstance(event, Result):
                    yield finish(event, batch)
                else:
                    yield event


def finish(result: Result, batch: Batch) -> Result:
    """Blend rows and trajectory, and repeat the first row of a closed loop."""
    if batch.strength != 1.0:
        rows = np.stack([batch.blend(i, row) for i, row in enumerate(result.rows)])
        trajectory = [[batch.blend_step(step) for step in steps] for steps in result.trajectory]
        result = dataclasses.replace(result, rows=rows, trajectory=trajectory)
    return _closed(result) if batch.repeat_first else result


def _plan(batch: Batch, call: Call, *, progress: bool = False) -> SchedulingParams:
    return SchedulingParams(
        step_params=batch.step_params, keep=batch.keep, deadline=call.deadline, key=call.key, progress=progress
    )


def _closed(result: Result) -> Result:
    again = [*range(len(result.rows)), 0]
    return dataclasses.replace(
        result,
        rows=result.rows[again],
        steps=result.steps[again],
        converged=result.converged[again],
        distance=result.distance[again],
        drift=None if result.drift is None else result.drift[again],
        trajectory=[result.trajectory[i] for i in again] if result.trajectory else result.trajectory,
    )
