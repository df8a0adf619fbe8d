"""Failures of the model, the device or a worker's thread, and closing the scheduler."""

import asyncio
import threading

import numpy as np
import pytest

from service.domain.errors import Draining, ModelFailure, NotReady
from service.domain.latents import FloatRows
from service.domain.model import DeviceOutOfMemory
from service.domain.tasks import Result
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    RecordingObserver,
    behind,
    collect,
    marked,
    params,
    play,
    release,
    streamed,
    submitted,
    until_running,
)


def test_the_log_says_why_the_model_failed_and_for_which_requests(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(gate=threading.Event(), failures={13: "CUBLAS failure 13\nwith a second line", 14: "disk full"})
    names = [(1, "fine"), (14, "other"), *((13, f"r{i}") for i in range(20))]
    calls = [(marked(value), params(2, request_id=name)) for value, name in names]
    fine, *failures = play(lambda scheduler: behind(scheduler, model, *calls), model, max_batch_rows=32)
    assert isinstance(fine, Result)
    assert {failure.reason for failure in failures} == {"CUBLAS failure 13", "disk full"}
    assert all("CUBLAS" not in failure.detail for failure in failures)
    first, second = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert first.endswith("failed on 1 of 22 rows: disk full; requests other")
    assert "failed on 20 of 22 rows: CUBLAS failure 13; requests r0, r1, " in second
    assert second.endswith("r15 and 4 more")


def test_a_model_that_loses_rows_is_a_failure() -> None:
    class Short(FakeModel):
        def run(self, rows: FloatRows) -> FloatRows:
            return rows[:0]

    with pytest.raises(ModelFailure):
        play(lambda scheduler: scheduler.run(marked(1, 2, 3), params(record=(1,))), Short())


@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
def test_out_of_memory_lowers_the_largest_batch(buckets: tuple[int, ...] | None) -> None:
    model, observer = FakeModel(memory_rows=3, buckets=buckets), RecordingObserver()
    rows = marked(*[float(2**i) for i in range(8)])

    async def main(scheduler: Scheduler) -> None:
        for _ in range(2):
            np.testing.assert_array_equal((await scheduler.run(rows, params(2))).rows, rows / 4)
        tried = len(model.sizes)
        await scheduler.run(rows, params())
        assert model.sizes[tried:] == [2, 2, 2, 2]

    play(main, model, observer=observer)
    assert model.batch_size_reductions == 2
    assert observer.of("reduce_max_batch") == [(2,)]


@pytest.mark.parametrize(("memory", "stuck", "sizes"), [(0, False, [2, 1, 1, 2]), (2, True, [3, 2])])
def test_rows_that_fit_no_batch_fail_alone(memory: int, stuck: bool, sizes: list[int]) -> None:
    """A row that does not fit the device alone, and rows of a model that cannot reduce its batch."""

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


def test_a_thread_that_dies_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    def deadly(rows: FloatRows) -> FloatRows:
        if (rows == 2).any():
            raise SystemExit
        return rows

    observer = RecordingObserver()

    async def main(scheduler: Scheduler) -> None:
        with pytest.raises(ModelFailure):
            await scheduler.run(marked(2), params(2))
        await scheduler.run(marked(3), params())
        assert scheduler.healthy

    play(main, FakeModel(function=deadly), observer=observer)
    assert observer.of("worker_replaced") == [()]
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


def test_before_start_it_is_not_ready() -> None:
    async def main() -> None:
        scheduler = Scheduler(FakeModel(), max_batch_rows=1, queue_rows=1)
        assert not scheduler.healthy
        with pytest.raises(NotReady):
            await scheduler.run(marked(1), params())
        with pytest.raises(NotReady), scheduler.room_for(1, ""):
            raise AssertionError
        scheduler.close()
        with pytest.raises(Draining), scheduler.room_for(1, ""):
            raise AssertionError

    asyncio.run(main())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_close_fails_what_is_left(elsewhere: bool) -> None:
    """From the event loop, which does not wait for the step, and from another thread, which does."""
    model, observer = FakeModel(gate=threading.Event()), RecordingObserver()

    async def main(scheduler: Scheduler) -> None:
        call = submitted(scheduler, marked(1, 2), params(5))
        stream = asyncio.create_task(collect(streamed(scheduler, marked(1), params(5))))
        await until_running(model)
        closing = asyncio.create_task(asyncio.to_thread(scheduler.close, 10)) if elsewhere else None
        if closing is None:
            scheduler.close(0)
        for waiting in (call, stream):
            with pytest.raises(Draining):
                await waiting
        with pytest.raises(Draining):
            await scheduler.run(marked(1), params())
        release(model)
        if closing is not None:
            await closing

    play(main, model, max_batch_rows=1, observer=observer)
    assert len(model.sizes) == 1
    assert sorted(observer.of("finished")) == [(1, "draining"), (2, "draining")]
