"""Several devices with one queue: how rows are divided, and what happens when a device is lost."""

import asyncio
import logging
import threading

import numpy as np
import pytest

from service.domain.errors import ModelFailure, NotReady
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost
from service.domain.tasks import Result
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    RecordingObserver,
    idle,
    marked,
    params,
    play,
    release,
    rows_worth_waking,
    submitted,
    until_queued,
    until_running,
)
from tests.unit.service.scheduling.test_scheduler_properties import Device


def test_idle_devices_share_a_request() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        await idle(scheduler, 2)
        await scheduler.run(marked(*range(8)), params())

    play(main, *models)
    assert [size for model in models for size in model.sizes] == [4, 4]  # the second by whoever is faster


def test_a_busy_device_takes_all_it_can() -> None:
    models = [FakeModel(gate=threading.Event()) for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
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

    play(main, *models)
    assert [model.sizes for model in models] == [[1, 8], [1]]


@pytest.mark.parametrize("lost_in", [1, 2, 3])
def test_another_device_finishes_the_rows_of_a_lost_one(lost_in: int, caplog: pytest.LogCaptureFixture) -> None:
    models, observer, left = [Device(lost_in=lost_in), FakeModel()], RecordingObserver(), list[bool]()
    rows = marked(*[float(2**i) for i in range(10)])

    async def main(scheduler: Scheduler) -> None:
        while not observer.of("device_lost"):
            await idle(scheduler, 2)
            np.testing.assert_array_equal((await scheduler.run(rows, params(3))).rows, rows / 8)
        assert (scheduler.healthy, scheduler.device_error) == (True, "")

    play(main, *models, max_batch_rows=4, observer=observer, on_all_devices_lost=lambda: left.append(True))
    assert observer.of("device_lost") == [()]
    assert (observer.of("worker_replaced"), left) == ([], [])
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "CUDA failure 700" in line
    assert "others go on, 1 of them" in line


@pytest.mark.parametrize("rows", [1, 4])
def test_few_rows_of_a_lost_device_wake_another(rows: int) -> None:
    models = [Device(lost_in=1), Device(lost_in=1), FakeModel()]

    async def main(scheduler: Scheduler) -> None:
        for _ in range(3):
            result = await asyncio.wait_for(scheduler.run(marked(*[8.0] * rows), params(2)), 10)
            np.testing.assert_array_equal(result.rows, marked(*[2.0] * rows))

    play(main, *models, wake_rule=rows_worth_waking(16))


def test_few_rows_stay_together() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        for rows, sizes in ((8, [8]), (16, [16]), (31, [16, 15]), (64, [32, 32])):
            await idle(scheduler, 2)
            before = [len(model.sizes) for model in models]
            await scheduler.run(marked(*range(rows)), params())
            ran = [size for model, n in zip(models, before, strict=True) for size in model.sizes[n:]]
            assert sorted(ran) == sorted(sizes)

    play(main, *models, max_batch_rows=64, queue_rows=200, wake_rule=rows_worth_waking(16))


def test_rows_with_many_steps_are_divided() -> None:
    def takes_time(rows: FloatRows) -> FloatRows:
        threading.Event().wait(0.001)  # longer than a thread takes to wake
        return rows

    models = [FakeModel(function=takes_time) for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        await idle(scheduler, 2)
        await scheduler.run(marked(1, 2, 3, 4), params(1000))

    play(main, *models, max_batch_rows=64, wake_rule=rows_worth_waking(16))
    assert all(len(model.sizes) > 100 for model in models)


def test_losing_the_last_device_fails_all_requests() -> None:
    models, observer = [Device(lost_in=2), Device(lost_in=2)], RecordingObserver()

    told = asyncio.Event()

    async def main(scheduler: Scheduler) -> None:
        await idle(scheduler, 2)
        assert (await scheduler.run(marked(2, 4), params())).rows.tolist() == marked(1, 2).tolist()
        # One may have been faster than the other, and had both rows.
        await idle(scheduler, 2 - len(observer.of("device_lost")))
        with pytest.raises(ModelFailure) as caught:
            await scheduler.run(marked(1, 2), params(2))
        assert isinstance(caught.value.__cause__, DeviceLost)
        await asyncio.wait_for(told.wait(), 10)
        assert (scheduler.healthy, bool(scheduler.device_error)) == (False, True)
        with pytest.raises(NotReady):
            await scheduler.run(marked(1), params())

    play(main, *models, observer=observer, on_all_devices_lost=told.set)
    assert observer.of("device_lost") == [(), ()]


def test_a_thread_that_dies_fails_only_its_own_batch() -> None:
    observer = RecordingObserver()

    def deadly(rows: FloatRows) -> FloatRows:
        if (rows == 13).any():
            raise SystemExit
        return rows * np.float32(0.5)

    models = [FakeModel(function=deadly, gate=threading.Event()) for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
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

    play(main, *models, max_batch_rows=1, observer=observer)
    assert observer.of("worker_replaced") == [()]
