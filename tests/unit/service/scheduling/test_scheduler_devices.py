"""Several devices with one queue: how rows are divided, and what happens when a device is lost."""

import asyncio
import logging
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import DeadlineUnreachable, ModelFailure, NotReady
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost
from service.domain.tasks import Result
from service.scheduling.admission import Admission
from service.scheduling.request import ScheduledRequest
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    RecordingObserver,
    idle,
    marked,
    params,
    release,
    rows_open,
    rows_worth_waking,
    serving,
    submitted,
    until_queued,
    until_running,
)
from tests.unit.service.scheduling.test_scheduler_properties import SHAPE, Ask, answer, asks, f, is_poison


class Losing(FakeModel):
    """A device that is lost in its n-th call, counted from 1, and in all that follow; never if n is 0."""

    def __init__(self, *args: object, lost_in: int = 0, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.calls = 0
        self.lost_in = lost_in

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        self.calls += 1
        if self.lost_in and self.calls >= self.lost_in:
            super().run(rows)
            raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")
        return super().run(rows, out)


def test_devices_compute_at_the_same_time() -> None:
    models = [FakeModel(gate=threading.Event()) for _ in range(3)]

    async def main() -> None:
        with serving(*models, max_batch_rows=2) as scheduler:
            calls = [submitted(scheduler, marked(float(i), -1.0), params(3)) for i in range(3)]
            for model in models:
                await until_running(model)
            for model in models:
                release(model)
            for i, result in enumerate(await asyncio.gather(*calls)):
                np.testing.assert_array_equal(result.rows, marked(i / 8, -1 / 8))

    asyncio.run(main())
    assert all(model.sizes for model in models)


def test_idle_devices_share_a_request() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main() -> None:
        with serving(*models) as scheduler:
            await idle(scheduler, 2)
            await scheduler.run(marked(*range(8)), params())

    asyncio.run(main())
    assert [size for model in models for size in model.sizes] == [4, 4]  # the second by whoever is faster


def test_a_busy_device_takes_all_it_can() -> None:
    models = [FakeModel(gate=threading.Event()) for _ in range(2)]

    async def main() -> None:
        with serving(*models) as scheduler:
            await idle(scheduler, 2)
            plugs = [submitted(scheduler, marked(1.0), params()) for _ in models]
            for model in models:
                await until_running(model)
            waiting = submitted(scheduler, marked(*range(8)), params())
            await until_queued(scheduler, waiting)
            release(models[0])
            await waiting
            release(models[1])
            await asyncio.gather(*plugs)

    asyncio.run(main())
    assert [model.sizes for model in models] == [[1, 8], [1]]


def test_each_device_has_its_own_largest_batch() -> None:
    small, large, observer = FakeModel(memory_rows=2), FakeModel(), RecordingObserver()

    async def main() -> None:
        with serving(small, large, observer=observer) as scheduler:
            async with asyncio.timeout(30):
                while not (small.sizes and large.sizes):  # on a busy machine, one of them may get all rows
                    await idle(scheduler, 2)
                    await scheduler.run(marked(*range(16)), params())

    asyncio.run(main())
    assert observer.of("reduce_max_batch") == [(2,)]
    assert max(large.sizes) > 2


@pytest.mark.parametrize("lost_in", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_another_device_finishes_the_rows_of_a_lost_one(
    lost_in: int, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    models, observer = [Losing(lost_in=lost_in), FakeModel()], RecordingObserver()
    values = [float(2**i) for i in range(10)]
    left = list[bool]()

    async def main() -> None:
        with serving(
            *models, max_batch_rows=4, observer=observer, on_all_devices_lost=lambda: left.append(False)
        ) as scheduler:
            while not observer.of("device_lost"):
                await idle(scheduler, 2)
                result = await scheduler.run(marked(*values), params(steps, score=True, record=(steps,)))
                np.testing.assert_array_equal(result.rows, marked(*values) / np.float32(2**steps))
                assert result.distance.tolist() == [value / 2 for value in values]
                assert result.drift is not None
                assert result.drift.tolist() == [value / 2 ** (steps + 1) for value in values]
                assert [len(path) for path in result.trajectory] == [1] * len(values)
            assert (scheduler.healthy, scheduler.all_devices_lost) == (True, False)
            assert rows_open(scheduler) == 0

    asyncio.run(main())
    assert observer.of("device_lost") == [()]
    assert (observer.of("worker_replaced"), left) == ([], [])
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "CUDA failure 700" in line
    assert "others go on, 1 of them" in line


@pytest.mark.parametrize("rows", [1, 4])
def test_few_rows_of_a_lost_device_wake_another(rows: int) -> None:
    models = [Losing(lost_in=1), Losing(lost_in=1), FakeModel()]

    async def main() -> None:
        with serving(*models, wake_rule=rows_worth_waking(16)) as scheduler:
            for _ in range(3):
                result = await asyncio.wait_for(scheduler.run(marked(*[8.0] * rows), params(2)), 10)
                np.testing.assert_array_equal(result.rows, marked(*[2.0] * rows))

    asyncio.run(main())


def test_few_rows_stay_together() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main() -> None:
        with serving(*models, max_batch_rows=64, queue_rows=200, wake_rule=rows_worth_waking(16)) as scheduler:
            for rows, sizes in ((8, [8]), (16, [16]), (31, [16, 15]), (64, [32, 32])):
                await idle(scheduler, 2)
                before = [len(model.sizes) for model in models]
                await scheduler.run(marked(*range(rows)), params())
                ran = [size for model, n in zip(models, before, strict=True) for size in model.sizes[n:]]
                assert sorted(ran) == sorted(sizes)

    asyncio.run(main())


def test_rows_with_many_steps_are_divided() -> None:
    def takes_time(rows: FloatRows) -> FloatRows:
        threading.Event().wait(0.001)  # longer than a thread takes to wake
        return rows

    models = [FakeModel(function=takes_time) for _ in range(2)]

    async def main() -> None:
        with serving(*models, max_batch_rows=64, wake_rule=rows_worth_waking(16)) as scheduler:
            await idle(scheduler, 2)
            await scheduler.run(marked(1, 2, 3, 4), params(1000))

    asyncio.run(main())
    assert all(len(model.sizes) > 100 for model in models)


def test_losing_the_last_device_fails_all_requests() -> None:
    models, observer = [Losing(lost_in=2), Losing(lost_in=2)], RecordingObserver()

    async def main() -> None:
        told = asyncio.Event()
        with serving(*models, observer=observer, on_all_devices_lost=told.set) as scheduler:
            await idle(scheduler, 2)
            assert (await scheduler.run(marked(2, 4), params())).rows.tolist() == marked(1, 2).tolist()
            await idle(
                scheduler, 2 - len(observer.of("device_lost"))
            )  # one may have been faster than the other, and had both rows
            with pytest.raises(ModelFailure) as caught:
                await scheduler.run(marked(1, 2), params(2))
            assert isinstance(caught.value.__cause__, DeviceLost)
            await asyncio.wait_for(told.wait(), 10)
            assert (scheduler.healthy, scheduler.all_devices_lost) == (False, True)
            with pytest.raises(NotReady):
                await scheduler.run(marked(1), params())

    asyncio.run(main())
    assert observer.of("device_lost") == [(), ()]


@given(
    st.lists(asks(), min_size=1, max_size=8),
    st.integers(1, 4),
    st.lists(st.integers(0, 6), min_size=1, max_size=2),
    st.sampled_from([1, 4, 16]),
)
def test_lost_devices_change_no_result(requests: list[Ask], rows: int, losses: Sequence[int], least: int) -> None:
    models = [FakeModel(SHAPE, f, poison=is_poison)]
    models += [Losing(SHAPE, f, poison=is_poison, lost_in=calls) for calls in losses]

    async def main() -> None:
        scheduler = Scheduler(*models, max_batch_rows=rows, queue_rows=1000, wake_rule=rows_worth_waking(least))
        scheduler.start()
        try:
            await asyncio.wait_for(asyncio.gather(*(answer(scheduler, ask) for ask in requests)), 30)
            assert scheduler.healthy
        finally:
            scheduler.close()
        assert rows_open(scheduler) == 0

    asyncio.run(main())


def test_a_thread_that_dies_fails_only_its_own_batch() -> None:
    observer = RecordingObserver()

    def deadly(rows: FloatRows) -> FloatRows:
        if (rows == 13).any():
            raise SystemExit
        return rows * np.float32(0.5)

    models = [FakeModel(function=deadly, gate=threading.Event()) for _ in range(2)]

    async def main() -> None:
        with serving(*models, max_batch_rows=1, observer=observer) as scheduler:
            calls = [submitted(scheduler, marked(value), params(3)) for value in (13.0, 8.0)]
            for model in models:
                await until_running(model)
            later = submitted(scheduler, marked(16.0), params(3))
            await until_queued(scheduler, later)
            for model in models:
                release(model)
            dead, *others = await asyncio.gather(*calls, later, return_exceptions=True)
            assert isinstance(dead, ModelFailure)
            for other, value in zip(others, (1.0, 2.0), strict=True):
                assert isinstance(other, Result)
                np.testing.assert_array_equal(other.rows, marked(value))
            assert scheduler.healthy

    asyncio.run(main())
    assert observer.of("worker_replaced") == [()]


def test_two_devices_meet_deadlines_of_half_the_time() -> None:
    def refused(admission: Admission, deadline: float) -> bool:
        request = ScheduledRequest(marked(*[0.0] * 64), params(10, deadline=deadline), streamed=False, arrived=0.0)
        try:
            admission.admit(request, 0.0)
        except DeadlineUnreachable:
            return True
        return False

    for devices, seconds in ((1, 80.0), (2, 40.0), (4, 20.0)):
        admission = Admission(1000, *[8] * devices)
        for _ in range(20):
            admission.on_model_call(8, 1.0, 0.0)
        # 64 rows of 10 steps: 640 row-steps, 8 a second on each device
        assert refused(admission, seconds * 0.99)
        assert not refused(admission, seconds * 1.01)
