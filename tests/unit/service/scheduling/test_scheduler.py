"""Results of the scheduler, and how it forms batches."""

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.scheduling.queue import MAX_SKIPS
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    RecordingFunction,
    RecordingObserver,
    marked,
    params,
    release,
    serving,
    submitted,
    until_queued,
    until_running,
)


def test_steps_distance_and_drift() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            result = await scheduler.run(marked(16, -8), params(3, score=True))
        np.testing.assert_array_equal(result.rows, marked(2, -1))
        assert result.steps.tolist() == [3, 3]
        assert result.converged.tolist() == [False, False]
        assert result.distance.tolist() == [8.0, 4.0]
        assert result.drift is not None
        assert result.drift.tolist() == [1.0, 0.5]
        assert [list(path) for path in result.trajectory] == [[], []]
        assert result.queue_s >= 0.0
        assert result.compute_s >= 0.0

    asyncio.run(main())


def test_drift_is_measured_only_on_request_and_costs_one_step() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model) as scheduler:
            assert (await scheduler.run(marked(1), params(2))).drift is None
            assert len(model.sizes) == 2
            result = await scheduler.run(marked(1), params(2, score=True, record=(2,)))
            assert len(model.sizes) == 5
            assert result.steps.tolist() == [2]
            assert [step.step for step in result.trajectory[0]] == [2]

    asyncio.run(main())


def test_tolerance_returns_the_row_that_met_it() -> None:
    observer = RecordingObserver()

    async def main() -> None:
        with serving(FakeModel(), observer=observer) as scheduler:
            result = await scheduler.run(marked(16, 1, 1024), params(6, tolerance=1.5, score=True))
        # changes of the first: 8, 4, 2, 1; of the second: 0.5; the third is not done after six
        assert result.steps.tolist() == [4, 1, 6]
        assert result.converged.tolist() == [True, True, False]
        np.testing.assert_array_equal(result.rows, marked(1, 0.5, 16))
        assert result.drift is not None
        assert result.drift.tolist() == [0.5, 0.25, 8.0]
        assert observer.of("early_exit") == [(2,)]

    asyncio.run(main())


def test_trajectory_holds_recorded_steps_and_no_step_after_an_early_stop() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            result = await scheduler.run(marked(16, 2), params(4, tolerance=0.75, record=(0, 1, 3, 4)))
        first, second = result.trajectory
        assert [(s.index, s.step, s.change, float(s.row.flat[0])) for s in first] == [
            (0, 0, None, 16.0), (0, 1, 8.0, 8.0), (0, 3, 2.0, 2.0), (0, 4, 1.0, 1.0),
        ]  # fmt: skip
        assert [(s.index, s.step, s.change) for s in second] == [(1, 0, None), (1, 1, 1.0)]
        assert result.steps.tolist() == [4, 2]

    asyncio.run(main())


def test_kept_pixels_are_put_back_after_every_step() -> None:
    keep = np.zeros((2, 1, 4, 4), np.bool_)
    keep[0, :, :2] = True

    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            step_params = StepParams(steps=3, record=(1, 3), score=True)
            result = await scheduler.run(marked(16, 16), SchedulingParams(step_params=step_params, keep_mask=keep))
        expected = marked(2, 2)
        expected[0, :, :2] = 16
        np.testing.assert_array_equal(result.rows, expected)
        assert result.distance.tolist() == [8.0, 8.0]  # before the mask
        assert [step.change for step in result.trajectory[0]] == [4.0, 1.0]  # after it
        assert result.drift is not None
        assert result.drift.tolist() == [4.5, 1.0]

    asyncio.run(main())


def test_many_unobserved_steps() -> None:
    def turn(rows: FloatRows) -> FloatRows:
        return (rows + 1) % 1009

    model = FakeModel(function=turn)

    async def main() -> None:
        with serving(model) as scheduler:
            result = await scheduler.run(marked(0), params(20_000, record=(10_000,)))
        assert result.rows.flat[0] == 20_000 % 1009
        assert result.trajectory[0][0].row.flat[0] == 10_000 % 1009
        assert result.steps.tolist() == [20_000]
        assert len(model.sizes) == 20_000

    asyncio.run(main())


def test_the_callers_rows_are_left_alone() -> None:
    rows = marked(16)

    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            await scheduler.run(rows, params(3))
        np.testing.assert_array_equal(rows, marked(16))

    asyncio.run(main())


def test_finished_rows_are_freed_without_the_garbage_collector() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            rows = marked(1, 2)
            gone = weakref.ref(rows)
            await scheduler.run(rows, params(3, record=(0, 2), score=True))
            del rows
            await scheduler.run(marked(3), params())  # the batch has been formed anew
            assert gone() is None

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "rows",
    [np.zeros((0, 1, 4, 4), np.float32), np.zeros((1, 1, 4, 5), np.float32), np.zeros((1, 1, 4, 4))],
)
def test_rows_that_do_not_fit_the_model(rows: FloatRows) -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            with pytest.raises(ValueError, match="float32"):
                await scheduler.run(rows, params())
            misfit = SchedulingParams(step_params=StepParams(steps=1), keep_mask=np.zeros((2, 1, 4, 4), np.bool_))
            with pytest.raises(ValueError, match="keep"):
                await scheduler.run(marked(1), misfit)

    asyncio.run(main())


def test_padding_goes_to_the_smallest_bucket_that_fits() -> None:
    model, observer = FakeModel(buckets=(1, 4, 8)), RecordingObserver()

    async def main() -> None:
        with serving(model, max_batch_rows=64, observer=observer) as scheduler:
            for n in (1, 2, 3, 4, 5, 8, 9):
                values = [float(2**i) for i in range(n)]
                result = await scheduler.run(marked(*values), params())
                np.testing.assert_array_equal(result.rows, marked(*values) / 2)

    asyncio.run(main())
    assert model.sizes == [1, 4, 4, 4, 8, 8, 8, 1]
    assert observer.of("batch")[1] == (2, 4, "drained")
    assert observer.of("batch")[-2:] == [(8, 8, "full"), (1, 1, "drained")]


def test_padding_repeats_a_row_of_the_batch() -> None:
    seen: list[list[float]] = []

    def climb(rows: FloatRows) -> FloatRows:
        seen.append([float(row.flat[0]) for row in rows])
        return rows + 1

    async def main() -> None:
        with serving(FakeModel(function=climb, buckets=(4,))) as scheduler:
            await scheduler.run(marked(10, 20, 30), params(2))

    asyncio.run(main())
    assert seen == [[10, 20, 30, 10], [11, 21, 31, 11]]


def test_without_buckets_the_batch_has_the_exact_number_of_rows() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model, max_batch_rows=4) as scheduler:
            await scheduler.run(marked(1, 2, 3, 4, 5, 6, 7), params())

    asyncio.run(main())
    assert model.sizes == [4, 3]


def test_rows_of_different_requests_share_a_batch() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            first = submitted(scheduler, marked(1), params(2))
            await until_running(model)
            others = [submitted(scheduler, marked(value), params()) for value in (2, 3)]
            await until_queued(scheduler, *others)
            release(model)
            await asyncio.gather(first, *others)

    asyncio.run(main())
    assert [sorted(rows) for rows in recorded.batches] == [[1], [1, 2, 3]]


@pytest.mark.parametrize("key", ["same", "other"])
def test_a_short_request_waits_for_one_step_of_a_long_one(key: str) -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1) as scheduler:
            long = submitted(scheduler, marked(1), params(1000, key="same"))
            await until_running(model)
            short = submitted(scheduler, marked(2), params(key=key))
            await until_queued(scheduler, short)
            release(model)
            await asyncio.gather(long, short)

    asyncio.run(main())
    assert recorded.batches[:3] == [[1], [2], [1]]
    assert len(recorded.batches) == 1001


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
                admitted.wait(10)
            return recorded(rows)

        with serving(FakeModel(function=watched), clock=clock) as scheduler:
            await scheduler.run(marked(1), params(1000))
            await asyncio.gather(*short)

    asyncio.run(main())
    assert [place for place, rows in enumerate(recorded.batches) if 2 in rows] == [11]


def test_two_long_requests_take_turns() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1) as scheduler:
            first = submitted(scheduler, marked(1), params(10))
            await until_running(model)
            second = submitted(scheduler, marked(2), params(10))
            await until_queued(scheduler, second)
            release(model)
            await asyncio.gather(first, second)

    asyncio.run(main())
    assert all(abs(recorded.batches[:n].count([1]) - recorded.batches[:n].count([2])) <= 1 for n in range(21))


def test_two_callers_share_the_batch_evenly() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=4) as scheduler:
            plug = submitted(scheduler, marked(0), params())
            await until_running(model)
            many = submitted(scheduler, marked(*[1] * 40), params(key="many"))
            few = submitted(scheduler, marked(*[2] * 6), params(key="few"))
            await until_queued(scheduler, many, few)
            release(model)
            await asyncio.gather(plug, many, few)

    asyncio.run(main())
    assert [sorted(rows) for rows in recorded.batches[1:4]] == [[1, 1, 2, 2]] * 3
    assert [sorted(rows) for rows in recorded.batches[4:]] == [[1] * 4] * 8 + [[1] * 2]


def test_a_row_is_skipped_a_bounded_number_of_times() -> None:
    turns: list[int] = []
    young: list[asyncio.Task[Result]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def feed(rows: FloatRows) -> FloatRows:
            """Before every step ends, another newcomer is in the queue."""
            turns.append(int(rows.flat[0]))
            if len(turns) <= 2 * (MAX_SKIPS + 1):
                admitted = threading.Event()
                loop.call_soon_threadsafe(join, admitted)
                admitted.wait(10)
            return rows

        def join(admitted: threading.Event) -> None:
            young.append(submitted(scheduler, marked(2), params()))
            loop.call_soon(loop.call_soon, admitted.set)  # in the next turn: after it was handed over

        with serving(FakeModel(function=feed), max_batch_rows=1) as scheduler:
            await scheduler.run(marked(1), params(3))
            await asyncio.gather(*young)

    asyncio.run(main())
    served = [place for place, mark in enumerate(turns) if mark == 1]
    assert served == [0, MAX_SKIPS + 1, 2 * (MAX_SKIPS + 1)]
