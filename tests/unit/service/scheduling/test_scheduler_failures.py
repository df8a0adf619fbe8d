"""Failures of the model, the device or a worker's thread, and closing the scheduler."""

import asyncio
import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from service.domain.errors import (
    Draining,
    ModelFailure,
    NotReady,
)
from service.domain.latents import FloatRow, FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory
from service.domain.tasks import Result
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    RecordingFunction,
    RecordingObserver,
    collect,
    marked,
    params,
    release,
    serving,
    streamed,
    submitted,
    until_queued,
    until_running,
)


def is_poison(row: FloatRow) -> bool:
    return bool(row.flat[0] == 13)


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
def test_a_poison_row_fails_alone(place: int, buckets: tuple[int, ...] | None) -> None:
    model = FakeModel(gate=threading.Event(), poison=is_poison, buckets=buckets)

    async def main() -> None:
        with serving(model) as scheduler:
            plug = submitted(scheduler, marked(0), params())
            await until_running(model)
            values = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
            values.insert(place, 13.0)
            calls = [submitted(scheduler, marked(value), params(2)) for value in values]
            await until_queued(scheduler, *calls)
            release(model)
            results = await asyncio.gather(plug, *calls, return_exceptions=True)
            for value, result in zip(values, results[1:], strict=True):
                if value == 13.0:
                    assert isinstance(result, ModelFailure)
                    assert isinstance(result.__cause__, RuntimeError)
                    assert "poison" not in result.detail
                else:
                    assert isinstance(result, Result)
                    np.testing.assert_array_equal(result.rows, marked(value / 4))
            assert scheduler.healthy

    asyncio.run(main())


def test_a_request_fails_as_a_whole() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, poison=is_poison)

    async def main() -> None:
        with serving(model, max_batch_rows=2) as scheduler, pytest.raises(ModelFailure):
            await scheduler.run(marked(1, 13, 3, 4), params(100))

    asyncio.run(main())
    assert recorded.batches == [[1]]


def test_a_failure_amid_unobserved_steps() -> None:
    def climb(rows: FloatRows) -> FloatRows:
        return rows + 1

    async def main() -> None:
        with serving(FakeModel(function=climb, poison=is_poison)) as scheduler:
            bad, good = await asyncio.gather(
                scheduler.run(marked(0), params(50)),
                scheduler.run(marked(100), params(50)),
                return_exceptions=True,
            )
        assert isinstance(bad, ModelFailure)
        assert isinstance(good, Result)
        np.testing.assert_array_equal(good.rows, marked(150))

    asyncio.run(main())


def test_losing_the_only_device_fails_open_requests_and_refuses_new_ones(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def gone(rows: FloatRows) -> FloatRows:
        sizes.append(len(rows))
        raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")

    async def main() -> None:
        with serving(FakeModel(function=gone)) as scheduler:
            assert (scheduler.healthy, scheduler.all_devices_lost) == (True, False)
            with pytest.raises(ModelFailure) as caught:
                await scheduler.run(marked(1, 2, 3, 4), params(5, request_id="a-lost-request"))
            assert isinstance(caught.value.__cause__, DeviceLost)
            assert (scheduler.healthy, scheduler.all_devices_lost) == (False, True)
            assert "CUDA failure 700" in scheduler.device_error
            with pytest.raises(NotReady):
                await scheduler.run(marked(1), params())

    asyncio.run(main())
    assert sizes == [4]  # halves of it would fail as well
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert "CUDA failure 700" in record.getMessage()
    assert "a-lost-request" in record.getMessage()


def test_the_log_says_why_the_model_failed_and_for_which_requests(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(gate=threading.Event(), failures={13: "CUBLAS failure 13\nwith a second line", 14: "disk full"})

    async def main() -> None:
        with serving(model) as scheduler:
            plug = submitted(scheduler, marked(0), params())
            await until_running(model)
            names = {1: "fine", 13: "first", 14: "third"}
            calls = [submitted(scheduler, marked(value), params(request_id=name)) for value, name in names.items()]
            calls.append(submitted(scheduler, marked(13), params(request_id="second")))
            await until_queued(scheduler, *calls)
            release(model)
            results = await asyncio.gather(plug, *calls, return_exceptions=True)
            failures = [result for result in results if isinstance(result, ModelFailure)]
            assert {failure.reason for failure in failures} == {"CUBLAS failure 13", "disk full"}
            assert all("CUBLAS" not in failure.detail for failure in failures)

    asyncio.run(main())
    first, second = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert first.endswith("failed on 2 of 4 rows: CUBLAS failure 13; requests first, second")
    assert second.endswith("failed on 1 of 4 rows: disk full; requests third")


def test_a_line_of_the_log_names_only_some_of_many_requests(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(gate=threading.Event(), failures={13: "disk full"})

    async def main() -> None:
        with serving(model, max_batch_rows=32) as scheduler:
            plug = submitted(scheduler, marked(0), params())
            await until_running(model)
            calls = [submitted(scheduler, marked(13), params(request_id=f"r{i}")) for i in range(20)]
            await until_queued(scheduler, *calls)
            release(model)
            await asyncio.gather(plug, *calls, return_exceptions=True)

    asyncio.run(main())
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.endswith("r15 and 4 more")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("steps", [1, 10])
def test_output_that_is_not_finite_fails_its_row(bad: float, steps: int) -> None:
    def sometimes(rows: FloatRows) -> FloatRows:
        y = np.where(np.isfinite(rows), rows + 1, np.float32(0))  # it would recover in the next step
        y[y[:, 0, 0, 0] == steps, :, 2, 2] = bad
        return y

    async def main() -> None:
        with serving(FakeModel(function=sometimes)) as scheduler:
            calls = [submitted(scheduler, marked(value), params(steps + 20)) for value in (0, 100)]
            failed, fine = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(failed, ModelFailure)
            assert "finite" in failed.detail
            assert isinstance(fine, Result)

    asyncio.run(main())


def test_a_model_that_loses_rows_is_a_failure() -> None:
    class Short(FakeModel):
        def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
            return rows[:0]

    async def main() -> None:
        with serving(Short()) as scheduler, pytest.raises(ModelFailure):
            await scheduler.run(marked(1, 2, 3), params(record=(1,)))

    asyncio.run(main())


@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
def test_out_of_memory_lowers_the_largest_batch(buckets: tuple[int, ...] | None) -> None:
    model, observer = FakeModel(memory_rows=3, buckets=buckets), RecordingObserver()

    async def main() -> None:
        with serving(model, observer=observer) as scheduler:
            values = [float(2**i) for i in range(8)]
            for _ in range(2):
                result = await scheduler.run(marked(*values), params(2))
                np.testing.assert_array_equal(result.rows, marked(*values) / 4)
            tried = len(model.sizes)
            await scheduler.run(marked(*values), params())
            assert model.sizes[tried:] == [2, 2, 2, 2]

    asyncio.run(main())
    assert model.batch_size_reductions == 2
    assert observer.of("reduce_max_batch") == [(2,)]


def test_a_row_that_does_not_fit_the_device_alone_fails() -> None:
    model = FakeModel(memory_rows=0)

    async def main() -> None:
        with serving(model) as scheduler:
            with pytest.raises(ModelFailure):
                await scheduler.run(marked(1, 2), params())
            model.memory_rows = None
            await scheduler.run(marked(1, 2), params())

    asyncio.run(main())


def test_a_model_that_cannot_reduce_its_batch_fails_those_rows_only() -> None:
    class Stuck(FakeModel):
        def reduce_max_batch(self) -> None:
            raise DeviceOutOfMemory

    model = Stuck(memory_rows=2)

    async def main() -> None:
        with serving(model) as scheduler:
            with pytest.raises(ModelFailure):
                await scheduler.run(marked(1, 2, 3), params())
            await scheduler.run(marked(1, 2), params())
            assert scheduler.healthy

    asyncio.run(main())
    assert model.sizes == [3, 3, 2]  # the second call finds out which rows the failure is about


class HealthLog(logging.Handler):
    """Records the scheduler's health when a worker's death is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler | None = None
        self.healthy: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.scheduler is not None:
            self.healthy.append(self.scheduler.healthy)


@pytest.fixture
def health_log() -> Iterator[HealthLog]:
    handler, logger = HealthLog(), logging.getLogger("service.scheduling.worker")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_worker_that_dies_in_a_step_is_replaced(health_log: HealthLog) -> None:
    observer = RecordingObserver()

    def deadly(rows: FloatRows) -> FloatRows:
        if any(is_poison(row) for row in rows):
            raise SystemExit
        return rows * np.float32(0.5)

    model = FakeModel(function=deadly, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=observer) as scheduler:
            health_log.scheduler = scheduler
            assert scheduler.healthy
            bystander = submitted(scheduler, marked(8), params(3))
            await until_running(model)
            dead = submitted(scheduler, marked(13, 1), params())
            await until_queued(scheduler, dead)
            release(model)
            with pytest.raises(ModelFailure):
                await dead
            np.testing.assert_array_equal((await bystander).rows, marked(1))
            assert scheduler.healthy

    asyncio.run(main())
    assert health_log.healthy == [False]
    assert observer.of("worker_replaced") == [()]
    assert sorted(observer.of("finished")) == [(1, "ok"), (2, "model_failure")]


def test_a_worker_that_dies_between_steps_leaves_nobody_waiting(health_log: HealthLog) -> None:
    class BrokenKey(str):
        """Its hash fails once in a worker, which computes it when it queues the rows."""

        failed = False

        def __hash__(self) -> int:
            if threading.current_thread() is not threading.main_thread() and not self.failed:
                self.failed = True
                raise ZeroDivisionError
            return super().__hash__()

        __eq__ = str.__eq__

    model = FakeModel(gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1) as scheduler:
            health_log.scheduler = scheduler
            running = submitted(scheduler, marked(1), params(2))
            await until_running(model)
            waiting = submitted(scheduler, marked(2), params(key=BrokenKey("broken")))
            await until_queued(scheduler, waiting)
            release(model)
            for call in (running, waiting):
                with pytest.raises(ModelFailure):
                    await call
            await scheduler.run(marked(3), params())

    asyncio.run(main())
    assert health_log.healthy == [False]


def test_before_start_it_is_not_ready() -> None:
    async def main() -> None:
        scheduler = Scheduler(FakeModel(), max_batch_rows=1, queue_rows=1)
        assert not scheduler.healthy
        with pytest.raises(NotReady):
            await scheduler.run(marked(1), params())
        with pytest.raises(NotReady):
            await scheduler.check_capacity(1)
        scheduler.close()
        with pytest.raises(Draining):
            await scheduler.check_capacity(1)

    asyncio.run(main())


def test_close_fails_what_is_left() -> None:
    model, observer = FakeModel(gate=threading.Event()), RecordingObserver()

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=observer) as scheduler:
            call = submitted(scheduler, marked(1, 2), params(5))
            stream = asyncio.create_task(collect(streamed(scheduler, marked(1), params(5))))
            await until_running(model)
            scheduler.close(0)
            for waiting in (call, stream):
                with pytest.raises(Draining):
                    await waiting
            with pytest.raises(Draining):
                await scheduler.run(marked(1), params())
            release(model)

    asyncio.run(main())
    assert len(model.sizes) == 1
    assert sorted(observer.of("finished")) == [(1, "draining"), (2, "draining")]


def test_close_may_be_called_from_another_thread() -> None:
    model = FakeModel(gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            call = submitted(scheduler, marked(1), params(5))
            await until_running(model)
            closing = asyncio.create_task(asyncio.to_thread(scheduler.close, 10))
            with pytest.raises(Draining):  # while the step still runs
                await call
            release(model)
            await closing
            assert not scheduler.healthy

    asyncio.run(main())
    assert len(model.sizes) == 1


def test_a_closed_event_loop_does_not_stop_the_worker() -> None:
    model = FakeModel(gate=threading.Event())

    async def abandon(scheduler: Scheduler) -> None:
        task = submitted(scheduler, marked(1), params(record=(1,)))
        await until_running(model)
        task.cancel()

    async def again(scheduler: Scheduler) -> Result:
        return await scheduler.run(marked(4), params())

    with serving(model) as scheduler:
        asyncio.run(abandon(scheduler))
        release(model)
        assert asyncio.run(again(scheduler)).rows.flat[0] == 2.0
        assert scheduler.healthy
