"""Several devices with one queue: how rows are divided, and what happens when a device is lost."""

import logging
import threading

import numpy as np
import pytest

from service.domain.latents import FloatRows
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    RecordingObserver,
    idle,
    marked,
    params,
    play,
    rows_worth_waking,
)
from tests.unit.service.scheduling.test_scheduler_properties import Device


def test_idle_devices_share_a_request() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        await idle(scheduler, 2)
        await scheduler.run(marked(*range(8)), params())

    play(main, *models)
    assert [size for model in models for size in model.sizes] == [4, 4]  # the second by whoever is faster


@pytest.mark.parametrize("lost_in", [1, 2, 3])
def test_another_device_finishes_the_rows_of_a_lost_one(lost_in: int, caplog: pytest.LogCaptureFixture) -> None:
    models, observer, left = [Device(lost_in=lost_in), FakeModel()], RecordingObserver(), list[bool]()
    rows = marked(*[float(2**i) for i in range(10)])

    async def main(scheduler: Scheduler) -> None:
        while not observer.of("device_lost"):
            await idle(scheduler, 2)
            np.testing.assert_array_equal((await scheduler.run(rows, params(3))).rows, rows / 8)
        assert (scheduler.healthy, scheduler.all_devices_lost) == (True, False)

    play(main, *models, max_batch_rows=4, observer=observer, on_all_devices_lost=lambda: left.append(True))
    assert observer.of("device_lost") == [()]
    assert (observer.of("worker_replaced"), left) == ([], [])
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "CUDA failure 700" in line
    assert "others go on, 1 of them" in line


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
