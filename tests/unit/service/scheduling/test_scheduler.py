"""Results of the scheduler, and how it forms batches."""

import asyncio
import itertools
import threading
from typing import Any

import numpy as np
import pytest

from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams, StreamProgress
from service.scheduling.request import Event
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    RecordingFunction,
    RecordingObserver,
    behind,
    collect,
    marked,
    params,
    play,
    serving,
    streamed,
    submitted,
    until_running,
)


def test_drift_is_measured_only_on_request_and_costs_one_step() -> None:
    model = FakeModel()

    async def main(scheduler: Scheduler) -> None:
        assert (await scheduler.run(marked(1), params(2))).drift is None
        assert len(model.sizes) == 2
        result = await scheduler.run(marked(1), params(2, score=True, record=(2,)))
        assert len(model.sizes) == 5
        assert result.steps.tolist() == [2]
        assert [step.step for step in result.trajectory[0]] == [2]

    play(main, model)


@pytest.mark.parametrize(
    "rows",
    [np.zeros((0, 1, 4, 4), np.float32), np.zeros((1, 1, 4, 5), np.float32), np.zeros((1, 1, 4, 4))],
)
def test_rows_that_do_not_fit_the_model(rows: FloatRows) -> None:
    async def main(scheduler: Scheduler) -> None:
        with pytest.raises(ValueError, match="float32"):
            await scheduler.run(rows, params())
        misfit = SchedulingParams(step_params=StepParams(steps=1), keep_mask=np.zeros((2, 1, 4, 4), np.bool_))
        with pytest.raises(ValueError, match="keep"):
            await scheduler.run(marked(1), misfit)

    play(main, FakeModel())


def test_a_new_request_interrupts_unobserved_steps() -> None:
    recorded, clock = RecordingFunction(), Clock()  # time stands still: nothing else can interrupt

    async def main() -> None:
        loop = asyncio.get_running_loop()
        short: list[asyncio.Task[Result]] = []

        def join(admitted: threading.Event) -> None:
            short.append(submitted(scheduler, marked(2), params()))
            loop.call_soon(loop.call_soon, admitted.set)  # in the next turn: after it was handed over

        def watched(rows: FloatRows) -> FloatRows:
            if len(recorded.batches) == 10:
                admitted = threading.Event()
                loop.call_soon_threadsafe(join, admitted)
                admitted.wait(300)
            return recorded(rows)

        with serving(FakeModel(function=watched), clock=clock) as scheduler:
            await scheduler.run(marked(1), params(1000))
            await asyncio.gather(*short)

    asyncio.run(main())
    assert [place for place, rows in enumerate(recorded.batches) if 2 in rows] == [11]


@pytest.mark.parametrize(
    ("buckets", "n", "sizes"),
    [
        (None, 3, [3]),
        (None, 9, [4, 4, 1]),  # the model, the event loop and the callers have a share each
        ((1, 4, 8), 1, [1]),
        ((1, 4, 8), 2, [4]),
        ((1, 4, 8), 5, [8]),
        ((1, 4, 8), 9, [8, 1]),
        ((2, 4), 9, [4, 4, 2]),
    ],
)
def test_a_batch_has_the_smallest_bucket_that_fits(buckets: tuple[int, ...] | None, n: int, sizes: list[int]) -> None:
    observer, seen = RecordingObserver(), list[list[float]]()

    def recorded(rows: FloatRows) -> FloatRows:
        seen.append([float(row.flat[0]) for row in rows])
        return rows

    async def main(scheduler: Scheduler) -> None:
        await scheduler.run(marked(*range(10, 10 + n)), params())

    play(main, FakeModel(function=recorded, buckets=buckets), observer=observer)
    assert [len(batch) for batch in seen] == sizes
    for batch, (rows, padded, _) in zip(seen, observer.of("batch"), strict=True):
        assert isinstance(rows, int)
        assert (len(batch), set(batch[rows:])) == (padded, set(batch[:1]) if rows != padded else set())
    reason = "full" if buckets else "share"
    assert [reason for *_, reason in observer.of("batch")] == [reason] * (len(sizes) - 1) + ["drained"]


def test_two_callers_share_the_batch_evenly() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())
    calls = (marked(*[1] * 40), params(key="many")), (marked(*[2] * 6), params(key="few"))
    play(lambda scheduler: behind(scheduler, model, *calls), model, max_batch_rows=4)
    assert [sorted(rows) for rows in recorded.batches[1:4]] == [[1, 1, 2, 2]] * 3
    assert [sorted(rows) for rows in recorded.batches[4:]] == [[1] * 4] * 8 + [[1] * 2]


def test_short_requests_go_before_long_ones_where_that_is_faster() -> None:
    """Every second step at most, so that the long ones go on."""
    clock = Clock()

    def timed(rows: FloatRows) -> FloatRows:
        clock.now += 0.01 * len(rows)
        return rows

    model = FakeModel(function=timed)

    async def main(scheduler: Scheduler) -> None:
        long = submitted(scheduler, marked(*range(1, 7)), params(steps=10**6))
        await until_running(model)
        for value in range(100):
            result = await scheduler.run(marked(value), params())
            np.testing.assert_array_equal(result.rows, marked(value))
        long.cancel()

    play(main, model, clock=clock)
    assert model.sizes.count(1) > 20  # one that arrives right after such a step shares the next one
    assert not any(size == next_size == 1 for size, next_size in itertools.pairwise(model.sizes))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "score": True},
        {"steps": 30},
        {"steps": 5, "record": (0, 1, 3, 5), "score": True},
        {"steps": 5, "tolerance": 0.6, "record": (0, 1, 2, 5)},  # the first row has converged after one step
        {"steps": 5, "tolerance": 1e-3, "score": True},
    ],
)
@pytest.mark.parametrize("max_rows", [8, 2])
def test_an_exact_model_is_called_once_for_any_number_of_steps(options: dict[str, Any], max_rows: int) -> None:
    async def main(scheduler: Scheduler) -> list[Event]:
        events = await collect(streamed(scheduler, marked(2.5, 3.75, 4), params(**options)))
        events = [event for event in events if not isinstance(event, StreamProgress)]
        return sorted(events, key=lambda event: (getattr(event, "index", 9), getattr(event, "step", 9)))

    models = FakeModel(function=np.floor), FakeModel(function=np.floor)  # floor(floor(x)) = floor(x)
    once, each = (play(main, m, max_batch_rows=max_rows, exact=m is models[0]) for m in models)
    assert sum(models[0].sizes) == 3 < sum(models[1].sizes)
    for ours, theirs in zip(once, each, strict=True):
        for name in ("index", "step", "row", "change", "rows", "steps", "converged", "distance", "drift"):
            np.testing.assert_equal(getattr(ours, name, None), getattr(theirs, name, None), name)


def test_a_mask_puts_pixels_back_after_every_step_of_an_exact_model_too() -> None:
    model = FakeModel(function=np.floor)
    mask = np.arange(16).reshape(1, 1, 4, 4) < 4
    masked = SchedulingParams(step_params=StepParams(steps=3), keep_mask=mask)
    result = play(lambda scheduler: scheduler.run(marked(2.5), masked), model, exact=True)
    assert (np.asarray(result.rows)[mask] == 2.5).all()
    assert len(model.sizes) == 3
