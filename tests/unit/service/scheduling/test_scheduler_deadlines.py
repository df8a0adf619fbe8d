"""Rejections, deadlines and cancellation."""

import asyncio
import threading

import numpy as np
import pytest

from service.domain.errors import DeadlineExceeded, QueueFull
from service.domain.latents import FloatRows
from service.scheduling.request import Event, ScheduledRequest
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    RecordingFunction,
    RecordingObserver,
    marked,
    params,
    play,
    release,
    rows_open,
    submitted,
    until_queued,
    until_running,
)


def test_a_deadline_is_kept_while_the_device_is_busy() -> None:
    recorded, clock = RecordingFunction(), Clock()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        running = submitted(scheduler, marked(1), params(5, deadline=clock.now + 2.0))
        await until_running(model)
        waiting = submitted(scheduler, marked(2), params(deadline=clock.now + 1.0))
        await until_queued(scheduler, waiting)
        for call in (waiting, running):
            clock.now += 1.0
            with pytest.raises(DeadlineExceeded):
                await call
        assert scheduler.rows_queued == 0
        release(model)
        await scheduler.run(marked(3), params())

    play(main, model, clock=clock, loop_clock=clock)
    assert recorded.batches == [[1], [3]]


def test_room_is_promised_once() -> None:
    """Rows that are being made count, whether their requests came together or one after the other."""
    observer = RecordingObserver()

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

    play(main, FakeModel(), queue_rows=10, observer=observer)
    assert observer.of("rejected") == [("queue_full",)] * 2


def test_one_rejected_request_rejects_no_other_of_its_turn() -> None:
    async def main(scheduler: Scheduler) -> None:
        loop, ended = asyncio.get_running_loop(), list[ScheduledRequest]()
        end = loop.create_future()

        def on_events(events: list[tuple[ScheduledRequest, Event]]) -> None:
            ended.extend(request for request, _ in events)
            if len(ended) == 2:
                end.set_result(None)

        sizes = (2, 5, 1)
        first, rejected, last = scheduler.submit([(marked(*range(n)), params()) for n in sizes], on_events)
        assert isinstance(rejected, QueueFull)
        await end
        assert set(ended) == {first, last}

    play(main, FakeModel(), queue_rows=4)


def test_requests_that_end_while_their_batch_runs_do_not_disturb_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The rows of one that is gone may lie in memory that is in use for another request: no failure of the model."""

    def half(rows: FloatRows) -> FloatRows:
        return np.where(rows == 3, np.float32(np.nan), rows / 2)

    clock, observer = Clock(), RecordingObserver()
    model = FakeModel(function=half, gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        calls = [submitted(scheduler, marked(value), params()) for value in (1, 2)]
        gone = submitted(scheduler, marked(3), params())
        late = submitted(scheduler, marked(4), params(deadline=clock.now + 0.05))
        await until_running(model)
        gone.cancel()
        clock.now += 0.1
        with pytest.raises(DeadlineExceeded):
            await late
        release(model)
        for call, value in zip(calls, (1, 2), strict=True):
            np.testing.assert_array_equal((await call).rows, marked(value / 2))
        assert rows_open(scheduler) == 0

    play(main, model, clock=clock, loop_clock=clock, observer=observer)
    assert model.sizes == [4]
    assert observer.of("cancelled") == [(1,)]
    assert sorted(observer.of("finished")) == [(1, "deadline_exceeded"), (1, "ok"), (1, "ok")]
    assert not caplog.records
