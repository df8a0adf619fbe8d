import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from service.artifact.golden import GoldenReport
from service.domain.errors import ModelFailure, QueueFull
from service.domain.interpolation import Grid, LatentPath
from service.domain.latents import FloatRows, NoiseSource, slerp
from service.domain.tasks import Result, SchedulingParams, StepOutput, StepParams, StreamProgress
from service.models.engine import Batch, Call, Engine, Point, RowPoint, SeedPoint, finish
from service.models.repository import LoadedModel
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import make_card, sample_rows

SHAPE = (1, 4, 4)
NOISE = NoiseSource(SHAPE)
MODEL = LoadedModel(
    card=make_card(shape=SHAPE),
    digest="0" * 64,
    model=FakeModel(SHAPE),
    noise=NOISE,
    golden=GoldenReport(difference=0.0, spread=0.0, tolerance=1.0, batches=(1,)),
    device="cpu",
    provider="fake",
)


class Recorder:
    """Says what it is told to say, and remembers what it was asked."""

    def __init__(
        self, events: Sequence[StepOutput | StreamProgress | Result] = (), error: Exception | None = None
    ) -> None:
        self.events, self.error = events, error
        self.asked: list[tuple[FloatRows, SchedulingParams]] = []
        self.closed = False

    def check_capacity(self, rows: int) -> None:
        if self.error is not None:
            raise self.error

    async def submit(self, rows: FloatRows, params: SchedulingParams) -> Result:
        self.asked.append((rows, params))
        if self.error is not None:
            raise self.error
        (result,) = [event for event in self.events if isinstance(event, Result)]
        return result

    async def stream(
        self, rows: FloatRows, params: SchedulingParams
    ) -> AsyncGenerator[StepOutput | StreamProgress | Result, None]:
        self.asked.append((rows, params))
        try:
            for event in self.events:
                yield event
        finally:
            self.closed = True


def engine(scheduler: Recorder) -> Engine:
    return Engine(schedulers={MODEL: scheduler})


def result(rows: FloatRows, *, drift: bool = True, trajectory: bool = True) -> Result:
    n = len(rows)
    return Result(
        rows=rows,
        steps=np.arange(n),
        converged=np.arange(n) % 2 == 0,
        distance=np.arange(n) / 10,
        drift=np.arange(n) / 100 if drift else None,
        trajectory=[[step(i, rows[i], k) for k in (0, 1)] for i in range(n)] if trajectory else [],
        queue_s=0.1,
        compute_s=0.2,
    )


def step(index: int, row: FloatRows, number: int) -> StepOutput:
    return StepOutput(index=index, step=number, row=row, change=None if number == 0 else 0.5)


def test_generate_makes_the_seeds_rows() -> None:
    how = StepParams(steps=3)
    batch = Engine().generate(MODEL, seed=4, offset=2, n=3, noise_scale=0.5, step_params=how)
    np.testing.assert_array_equal(batch.rows, NOISE.rows(4, 2, 3, 0.5))
    assert (batch.step_params, batch.keep, batch.strength, batch.repeat_first) == (how, None, 1.0, False)


def test_points_are_latents_by_name_or_by_value() -> None:
    row = sample_rows(1, SHAPE)[0]
    assert Engine().latent(MODEL, RowPoint(row=row)) is row
    np.testing.assert_array_equal(Engine().latent(MODEL, SeedPoint(seed=1, index=5)), NOISE.row(1, 5))
    np.testing.assert_array_equal(Engine().latent(MODEL, SeedPoint(seed=1)), NOISE.row(1, 0))


@pytest.mark.parametrize("loop", [False, True])
def test_interpolate_along_a_path(loop: bool) -> None:
    row = sample_rows(1, SHAPE)[0]
    points: list[Point] = [SeedPoint(seed=1), RowPoint(row=row)]
    batch = Engine().interpolate(MODEL, points, LatentPath(frames=5, loop=loop), StepParams(steps=1))
    assert len(batch.rows) == 5 - loop
    assert batch.repeat_first is loop
    np.testing.assert_array_equal(batch.rows[1], slerp(NOISE.row(1, 0), row, 0.5 if loop else 0.25))


def test_interpolate_over_a_grid() -> None:
    points = [SeedPoint(seed=s) for s in range(4)]
    batch = Engine().interpolate(MODEL, points, Grid(rows=2, cols=3), StepParams(steps=1))
    assert batch.rows.shape == (6, *SHAPE)
    assert not batch.repeat_first
    np.testing.assert_array_equal(batch.rows[5], NOISE.row(3, 0))


def test_blending_is_exact_at_its_ends() -> None:
    x, y = sample_rows(2, SHAPE)
    rows = x[None]
    how = StepParams(steps=1)
    assert Batch(rows=rows, step_params=how).blend(0, y) is y
    np.testing.assert_array_equal(Batch(rows=rows, step_params=how, strength=0.0).blend(0, y), x)
    half = Batch(rows=rows, step_params=how, strength=0.5).blend(0, y)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, (x + y) / 2, atol=1e-7)


def test_a_recorded_input_is_never_blended() -> None:
    x, y = sample_rows(2, SHAPE)
    batch = Batch(rows=x[None], step_params=StepParams(steps=1), strength=0.3)
    assert batch.blend_step(step(0, x, 0)).row is x
    blended = batch.blend_step(step(0, y, 1))
    np.testing.assert_allclose(blended.row, 0.7 * x + 0.3 * y, atol=1e-6)
    assert (blended.index, blended.step, blended.change) == (0, 1, 0.5)


def test_a_result_is_blended_with_its_own_inputs() -> None:
    x, y = sample_rows(3, SHAPE, seed=1), sample_rows(3, SHAPE, seed=2)
    found = finish(result(y), Batch(rows=x, step_params=StepParams(steps=1), strength=0.25))
    np.testing.assert_allclose(found.rows, 0.75 * x + 0.25 * y, atol=1e-6)
    for i, steps in enumerate(found.trajectory):
        np.testing.assert_array_equal(steps[0].row, y[i])
        np.testing.assert_allclose(steps[1].row, 0.75 * x[i] + 0.25 * y[i], atol=1e-6)
    np.testing.assert_array_equal(found.distance, result(y).distance)


def test_an_ordinary_result_passes_through() -> None:
    given = result(sample_rows(2, SHAPE))
    assert finish(given, Batch(rows=sample_rows(2, SHAPE), step_params=StepParams(steps=1))) is given


@pytest.mark.parametrize("optional", [False, True])
def test_a_loop_ends_with_its_first_row(optional: bool) -> None:
    rows = sample_rows(3, SHAPE)
    given = result(rows, drift=optional, trajectory=optional)
    found = finish(given, Batch(rows=rows, step_params=StepParams(steps=1), repeat_first=True))
    np.testing.assert_array_equal(found.rows, rows[[0, 1, 2, 0]])
    assert found.steps.tolist() == [0, 1, 2, 0]
    assert found.converged.tolist() == [True, False, True, True]
    assert found.distance.tolist() == [0.0, 0.1, 0.2, 0.0]
    assert (None if found.drift is None else found.drift.tolist()) == ([0.0, 0.01, 0.02, 0.0] if optional else None)
    assert len(found.trajectory) == (4 if optional else 0)
    assert (found.queue_s, found.compute_s) == (0.1, 0.2)


def test_the_plan_is_what_was_asked_for() -> None:
    rows = sample_rows(2, SHAPE)
    keep = np.zeros((2, 1, 4, 4), np.bool_)
    batch = Batch(rows=rows, step_params=StepParams(steps=2), keep=keep)
    scheduler = Recorder([result(rows)])
    call = Call(key="alice", deadline=12.5)

    async def both() -> None:
        await engine(scheduler).run(MODEL, batch, call)
        async with aclosing(engine(scheduler).stream(MODEL, batch, call)) as events:
            assert [event async for event in events] == scheduler.events

    asyncio.run(both())
    (rows_run, run), (rows_streamed, streamed) = scheduler.asked
    assert rows_run is rows_streamed is rows
    for params in (run, streamed):
        assert (params.step_params, params.keep, params.deadline, params.key) == (
            batch.step_params,
            keep,
            12.5,
            "alice",
        )
    assert (run.progress, streamed.progress) == (False, True)


def test_a_stream_is_blended_and_finished_as_it_comes() -> None:
    x, y = sample_rows(1, SHAPE, seed=1), sample_rows(1, SHAPE, seed=2)
    progress = StreamProgress(steps_done=1, steps=2, rows_done=0, rows=1)
    scheduler = Recorder([step(0, x[0], 0), progress, step(0, y[0], 1), result(y)])
    batch = Batch(rows=x, step_params=StepParams(steps=1), strength=0.5)

    async def heard() -> list[StepOutput | StreamProgress | Result]:
        return [event async for event in engine(scheduler).stream(MODEL, batch, Call())]

    first, second, third, last = asyncio.run(heard())
    assert isinstance(first, StepOutput)
    assert first.row is scheduler.events[0].row  # type: ignore[union-attr] # it is the step above
    assert second is progress
    assert isinstance(third, StepOutput)
    np.testing.assert_allclose(third.row, (x[0] + y[0]) / 2, atol=1e-6)
    assert isinstance(last, Result)
    np.testing.assert_allclose(last.rows, (x + y) / 2, atol=1e-6)


def test_closing_the_stream_closes_the_schedulers() -> None:
    rows = sample_rows(1, SHAPE)
    scheduler = Recorder([step(0, rows[0], 0), result(rows)])

    async def leave() -> None:
        events = engine(scheduler).stream(MODEL, Batch(rows=rows, step_params=StepParams(steps=1)), Call())
        await anext(events)
        assert not scheduler.closed
        await events.aclose()
        assert scheduler.closed

    asyncio.run(leave())


def test_failures_pass_through() -> None:
    scheduler = Recorder(error=QueueFull("full", retry_after=1.0))
    batch = Batch(rows=sample_rows(1, SHAPE), step_params=StepParams(steps=1))
    with pytest.raises(QueueFull):
        asyncio.run(engine(scheduler).run(MODEL, batch, Call()))


def test_over_the_real_scheduler() -> None:
    async def run() -> tuple[Result, list[StepOutput | StreamProgress | Result]]:
        scheduler = Scheduler(FakeModel(SHAPE), max_batch_rows=4, queue_rows=16)
        scheduler.start()
        served = replace(MODEL)
        service = Engine(schedulers={served: scheduler})
        batch = service.generate(
            served, seed=1, offset=0, n=3, noise_scale=1.0, step_params=StepParams(steps=2, record=(1,))
        )
        found = await service.run(served, batch, Call())
        events = [event async for event in service.stream(served, batch, Call())]
        await asyncio.to_thread(scheduler.close)
        return found, events

    found, events = asyncio.run(run())
    np.testing.assert_array_equal(found.rows, NOISE.rows(1, 0, 3) * np.float32(0.25))
    assert isinstance(events[-1], Result)
    np.testing.assert_array_equal(events[-1].rows, found.rows)
    assert sorted((e.index, e.step) for e in events if isinstance(e, StepOutput)) == [
        (i, k) for i in range(3) for k in (1, 2)
    ]


def test_a_failing_row_fails_its_request() -> None:
    async def run() -> None:
        scheduler = Scheduler(FakeModel(SHAPE, poison=lambda row: True), max_batch_rows=4, queue_rows=16)
        scheduler.start()
        service = Engine(schedulers={MODEL: scheduler})
        try:
            await service.run(MODEL, Batch(rows=sample_rows(2, SHAPE), step_params=StepParams(steps=1)), Call())
        finally:
            await asyncio.to_thread(scheduler.close)

    with pytest.raises(ModelFailure):
        asyncio.run(run())
