"""The scheduler by example: how it forms batches, rejects, fails, streams and closes."""

import asyncio
import itertools
import threading
from typing import Any

import numpy as np
import pytest

from service.domain.errors import ModelFailure, QueueFull
from service.domain.latents import FloatRows
from service.domain.model import DeviceOutOfMemory
from service.domain.tasks import Result, SchedulingParams, StepParams, StreamProgress
from service.scheduling.request import Event
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    RecordingFunction,
    Reports,
    collect,
    marked,
    params,
    play,
    serving,
    streamed,
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


def test_a_new_request_interrupts_unobserved_steps() -> None:
    # time stands still: nothing else can interrupt
    recorded = RecordingFunction()
    clock = Clock()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        short: list[asyncio.Future[Result]] = []

        def join(admitted: threading.Event) -> None:
            short.append(scheduler.run(marked(2), params()))
            # in the next turn: after it was handed over
            loop.call_soon(loop.call_soon, admitted.set)

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
    ("buckets", "sizes"),
    [
        (None, [4, 4, 1]),  # the model, the event loop and the callers have a share each
        ((1, 4, 8), [8, 1]),
        ((2, 4), [4, 4, 2]),
    ],
)
def test_a_batch_has_the_smallest_bucket_that_fits(
    buckets: tuple[int, ...] | None, sizes: list[int]
) -> None:
    model = FakeModel(buckets=buckets)
    reports = Reports()
    play(lambda scheduler: scheduler.run(marked(*range(9)), params()), model, observe=reports)
    calls = reports.all("calls")
    assert model.sizes == [call.padded for call in calls] == sizes
    assert sum(call.rows for call in calls) == 9
    reason = "full" if buckets else "share"
    assert [call.reason for call in calls] == [reason] * (len(sizes) - 1) + ["drained"]


def test_two_threads_run_large_requests_only() -> None:
    used = set[int]()

    def noted(batch: FloatRows) -> FloatRows:
        used.add(threading.get_ident())
        return batch

    async def main(scheduler: Scheduler) -> None:
        await asyncio.gather(*[scheduler.run(marked(*range(8)), params()) for _ in range(4)])
        assert len(used) == 1
        await scheduler.run(marked(*range(32)), params())
        assert len(used) == 2

    play(main, FakeModel(function=noted), max_batch_rows=16, has_second=True)


def test_two_callers_share_the_batch_evenly() -> None:
    recorded = RecordingFunction()

    async def main(scheduler: Scheduler) -> None:
        many = scheduler.run(marked(*[1] * 40), params(key="many"))
        await asyncio.gather(many, scheduler.run(marked(*[2] * 6), params(key="few")))

    play(main, FakeModel(function=recorded), max_batch_rows=4)
    assert [sorted(rows) for rows in recorded.batches[:3]] == [[1, 1, 2, 2]] * 3
    assert [sorted(rows) for rows in recorded.batches[3:]] == [[1] * 4] * 8 + [[1] * 2]


def test_short_requests_go_before_long_ones_where_that_is_faster() -> None:
    """Every second step at most, so that the long ones go on."""
    clock = Clock()

    def timed(rows: FloatRows) -> FloatRows:
        clock.now += 0.01 * len(rows)
        return rows

    model = FakeModel(function=timed)

    async def main(scheduler: Scheduler) -> None:
        long = scheduler.run(marked(*range(1, 7)), params(steps=10**6))
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
        # the first row has converged after one step
        {"steps": 5, "tolerance": 0.6, "record": (0, 1, 2, 5)},
        {"steps": 5, "tolerance": 1e-3, "score": True},
    ],
)
@pytest.mark.parametrize("max_rows", [8, 2])
def test_an_exact_model_is_called_once_for_any_number_of_steps(
    options: dict[str, Any], max_rows: int
) -> None:
    async def main(scheduler: Scheduler) -> list[Event]:
        events = await collect(streamed(scheduler, marked(2.5, 3.75, 4), params(**options)))
        events = [event for event in events if not isinstance(event, StreamProgress)]
        return sorted(
            events, key=lambda event: (getattr(event, "index", 9), getattr(event, "step", 9))
        )

    # floor(floor(x)) = floor(x)
    models = (FakeModel(function=np.floor), FakeModel(function=np.floor))
    once, each = (play(main, m, max_batch_rows=max_rows, exact=m is models[0]) for m in models)
    assert sum(models[0].sizes) == 3 < sum(models[1].sizes)
    for ours, theirs in zip(once, each, strict=True):
        for name in (
            "index",
            "step",
            "row",
            "change",
            "rows",
            "steps",
            "converged",
            "distance",
            "drift",
        ):
            np.testing.assert_equal(getattr(ours, name, None), getattr(theirs, name, None), name)


def test_a_mask_puts_pixels_back_after_every_step_of_an_exact_model_too() -> None:
    model = FakeModel(function=np.floor)
    mask = np.arange(16).reshape(1, 1, 4, 4) < 4
    masked = SchedulingParams(step_params=StepParams(steps=3), keep_mask=mask)
    result = play(lambda scheduler: scheduler.run(marked(2.5), masked), model, exact=True)
    assert (np.asarray(result.rows)[mask] == 2.5).all()
    assert len(model.sizes) == 3


def test_out_of_memory_lowers_the_largest_batch() -> None:
    model = FakeModel(memory_rows=3, buckets=(1, 2, 4, 8))
    reports = Reports()
    rows = marked(*[float(2**i) for i in range(8)])

    async def main(scheduler: Scheduler) -> None:
        for _ in range(2):
            np.testing.assert_array_equal((await scheduler.run(rows, params(2))).rows, rows / 4)
        tried = len(model.sizes)
        await scheduler.run(rows, params())
        assert model.sizes[tried:] == [2, 2, 2, 2]

    play(main, model, observe=reports)
    assert model.batch_size_reductions == 2
    assert reports.all("limits") == [2]


@pytest.mark.parametrize(
    ("memory", "stuck", "sizes"), [(0, False, [2, 1, 1, 2]), (2, True, [3, 2])]
)
def test_rows_that_fit_no_batch_fail_alone(memory: int, stuck: bool, sizes: list[int]) -> None:
    """A row that does not fit the device alone, and rows of a model that cannot reduce its
    batch.
    """

    class Limited(FakeModel):
        def reduce_max_batch(self) -> None:
            if stuck:
                raise DeviceOutOfMemory

    model = Limited(memory_rows=memory)

    async def main(scheduler: Scheduler) -> None:
        with pytest.raises(ModelFailure):
            await scheduler.run(marked(*range(sizes[0])), params())
        model.memory_rows = max(memory, 1)
        await scheduler.run(marked(1), params())
        assert scheduler.healthy

    play(main, model)
    assert model.sizes[: len(sizes) - 1] == sizes[:-1]


def test_room_is_promised_once() -> None:
    """Rows that are being made count, whether their requests came together or one after the
    other.
    """
    reports = Reports()

    async def main(scheduler: Scheduler) -> None:
        with scheduler.room_for(6, ""):
            with pytest.raises(QueueFull), scheduler.room_for(5, ""):
                raise AssertionError
            with scheduler.room_for(4, ""), pytest.raises(QueueFull), scheduler.room_for(1, ""):
                raise AssertionError
            with pytest.raises(ZeroDivisionError), scheduler.room_for(4, ""):
                raise ZeroDivisionError
            with scheduler.room_for(4, ""):
                pass
        with scheduler.room_for(10, ""):
            pass
        await scheduler.run(marked(*range(10)), params())

    play(main, FakeModel(), queue_rows=10, observe=reports)
    assert reports.all("rejected") == ["queue_full"] * 2


def test_progress_comes_at_least_once_a_second() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 0.3
        return rows

    async def main(scheduler: Scheduler) -> list[Event]:
        return await collect(streamed(scheduler, marked(1, 2), params(40)))

    progress = [
        event
        for event in play(main, FakeModel(function=tick), clock=clock)
        if isinstance(event, StreamProgress)
    ]
    done = [event.steps_done for event in progress]
    assert done == sorted(done)
    assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(done))
    assert done[0] <= 3
    assert done[-1] >= 37
    assert {(event.steps, event.rows, event.rows_done) for event in progress[:-1]} == {(40, 2, 0)}


def test_progress_is_that_of_the_slowest_row() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1.1
        return rows * np.float32(0.5)

    async def main(scheduler: Scheduler) -> list[Event]:
        return await collect(streamed(scheduler, marked(16, 1), params(9, tolerance=0.75)))

    events = play(main, FakeModel(function=tick), clock=clock, max_batch_rows=1)
    progress = [event for event in events if isinstance(event, StreamProgress)]
    # One row a step: the first is a step ahead until the second is done, after one.
    seen = [(event.steps_done, event.rows_done) for event in progress]
    assert seen == sorted(seen)
    assert {(0, 0), (4, 1)} <= set(seen) <= {(0, 0), (1, 1), (2, 1), (3, 1), (4, 1)}
    assert {(event.steps, event.rows) for event in progress} == {(9, 2)}


@pytest.mark.parametrize("place", ["batch", "report", "events"])
def test_a_defect_on_the_event_loop_leaves_nobody_waiting(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    def fail(*_: object) -> None:
        if failing:
            raise ZeroDivisionError

    options: dict[str, Any] = {"batch": {"on_batch": fail}, "report": {"observe": fail}}

    async def main(scheduler: Scheduler) -> None:
        nonlocal failing
        if place == "events":
            scheduler.submit([(marked(2), params())], fail)
        calls = [scheduler.run(marked(i), params(3)) for i in range(20)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(each) for each in ended}
        assert kinds == {ModelFailure if place == "batch" else Result}
        failing = False
        np.testing.assert_array_equal((await scheduler.run(marked(4), params())).rows, marked(2))
        assert scheduler.healthy

    play(main, FakeModel(), **options.get(place, {}))
    assert "ZeroDivisionError" in caplog.text
