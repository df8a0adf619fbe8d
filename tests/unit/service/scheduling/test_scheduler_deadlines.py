"""Rejections, deadlines and cancellation."""

import asyncio
import threading

import numpy as np
import pytest

from service.domain.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull, WouldMissDeadline
from service.domain.latents import FloatRows
from service.domain.tasks import Result
from service.scheduling.request import Event, ScheduledRequest
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    RecordingFunction,
    RecordingObserver,
    collect,
    marked,
    params,
    play,
    release,
    rows_open,
    streamed,
    submitted,
    until_queued,
    until_running,
)


def ticking(clock: Clock, seconds: float, gate: threading.Event | None = None) -> FakeModel:
    """A model whose calls take so long."""

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += seconds
        return rows

    return FakeModel(function=tick, gate=gate)


def test_expired_rows_are_never_run() -> None:
    clock, recorded, observer = Clock(), RecordingFunction(), RecordingObserver()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        plug = submitted(scheduler, marked(1), params())
        await until_running(model)
        late = submitted(scheduler, marked(2, 3), params(deadline=clock.now + 50))
        after = submitted(scheduler, marked(4), params())
        await until_queued(scheduler, late, after)
        clock.now += 50
        release(model)
        await asyncio.gather(plug, after)
        with pytest.raises(DeadlineExceeded):
            await late

    play(main, model, max_batch_rows=1, clock=clock, observer=observer)
    assert recorded.batches == [[1], [4]]
    assert sorted(observer.of("finished")) == [(1, "ok"), (1, "ok"), (2, "deadline_exceeded")]
    assert observer.of("cancelled") == []


def test_a_deadline_is_kept_while_the_device_is_busy() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        loop = asyncio.get_running_loop()
        running = submitted(scheduler, marked(1), params(5, deadline=loop.time() + 0.05))
        await until_running(model)
        waiting = submitted(scheduler, marked(2), params(deadline=loop.time() + 0.02))
        await until_queued(scheduler, waiting)
        for call in (waiting, running):
            with pytest.raises(DeadlineExceeded):
                await asyncio.wait_for(call, 10)
        assert scheduler.rows_queued == 0
        release(model)
        await scheduler.run(marked(3), params())

    play(main, model)
    assert recorded.batches == [[1], [3]]


def test_the_deadline_of_a_stream_ends_with_its_first_event() -> None:
    """One that has not begun has no progress, so it keeps its deadline."""
    clock = Clock()
    model = ticking(clock, 1, threading.Event())

    async def main(scheduler: Scheduler) -> None:
        stream = streamed(scheduler, marked(*range(10)), params(deadline=clock.now + 4))
        running = asyncio.create_task(collect(stream))
        await until_running(model)
        waiting = asyncio.create_task(anext(streamed(scheduler, marked(1), params(deadline=clock.now + 5))))
        await asyncio.sleep(0)
        release(model)
        with pytest.raises(DeadlineExceeded):
            await waiting
        assert isinstance((await running)[-1], Result)

    play(main, model, max_batch_rows=1, clock=clock)
    assert len(model.sizes) == 10


def test_rejections_name_their_reason() -> None:
    clock, observer, gate = Clock(), RecordingObserver(), threading.Event()
    model = ticking(clock, 1.0, gate)  # one second a step

    async def main(scheduler: Scheduler) -> None:
        async def rejected(kind: type[Exception], rows: int, steps: int = 1, seconds: float | None = None) -> None:
            deadline = None if seconds is None else clock.now + seconds
            with pytest.raises(kind):
                await scheduler.run(marked(*range(rows)), params(steps, deadline=deadline))

        gate.set()
        await scheduler.run(marked(1), params(20))
        await rejected(DeadlineUnreachable, 1, seconds=0)
        await rejected(DeadlineUnreachable, 1, 10, seconds=9)
        await rejected(QueueFull, 41)
        gate.clear()
        model.entered.clear()
        queue = submitted(scheduler, marked(*range(31)), params())
        await until_running(model)
        await rejected(WouldMissDeadline, 1, seconds=20)
        await rejected(QueueFull, 11)
        with pytest.raises(QueueFull), scheduler.room_for(11):
            raise AssertionError
        with scheduler.room_for(10):
            pass
        more = submitted(scheduler, marked(*range(10)), params(deadline=clock.now + 1000))
        await until_queued(scheduler, more)
        release(model)
        await asyncio.gather(queue, more)

    play(main, model, max_batch_rows=1, queue_rows=40, clock=clock, observer=observer)
    reasons = ["deadline_unreachable"] * 2 + ["queue_full", "would_miss_deadline", *["queue_full"] * 2]
    assert [reason for (reason,) in observer.of("rejected")] == reasons


def test_room_is_promised_once() -> None:
    """Rows that are being made count, whether their requests came together or one after the other."""
    observer = RecordingObserver()

    async def main(scheduler: Scheduler) -> None:
        with scheduler.room_for(6):
            with pytest.raises(QueueFull), scheduler.room_for(5):
                raise AssertionError
            with scheduler.room_for(4), pytest.raises(QueueFull), scheduler.room_for(1):
                raise AssertionError
            with pytest.raises(ZeroDivisionError), scheduler.room_for(4):
                raise ZeroDivisionError
            with scheduler.room_for(4):
                pass
        with scheduler.room_for(10):
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


def test_cancelled_rows_never_reach_the_model() -> None:
    recorded, observer = RecordingFunction(), RecordingObserver()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        running = submitted(scheduler, marked(1, 2), params(50))
        await until_running(model)
        waiting = submitted(scheduler, marked(3, 4, 5), params())
        stays = submitted(scheduler, marked(6), params())
        await until_queued(scheduler, waiting, stays)
        for call in (waiting, running):
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert scheduler.rows_queued == 1
        release(model)
        await stays

    play(main, model, max_batch_rows=1, observer=observer)
    assert recorded.batches == [[1], [6]]
    assert observer.of("cancelled") == [(3,), (2,)]


def test_a_row_cancelled_in_the_batch_leaves_it_after_the_step() -> None:
    recorded = RecordingFunction()

    async def main(scheduler: Scheduler) -> None:
        loop = asyncio.get_running_loop()

        def leave(left: threading.Event) -> None:
            goes.cancel()
            loop.call_soon(left.set)

        def watched(rows: FloatRows) -> FloatRows:
            if len(rows) == 2 and len(recorded.batches) == 3:
                left = threading.Event()
                loop.call_soon_threadsafe(leave, left)
                left.wait(10)
            return recorded(rows)

        model.function = watched
        stays = submitted(scheduler, marked(1), params(9))
        await until_running(model)
        goes = submitted(scheduler, marked(2), params(10**9))
        await until_queued(scheduler, goes)
        release(model)
        await stays

    model = FakeModel(gate=threading.Event())
    play(main, model)
    assert [len(rows) for rows in recorded.batches] == [1, 2, 2, 2, 1, 1, 1, 1, 1]


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
        with pytest.raises(DeadlineExceeded):
            await late
        release(model)
        for call, value in zip(calls, (1, 2), strict=True):
            np.testing.assert_array_equal((await call).rows, marked(value / 2))
        assert rows_open(scheduler) == 0

    play(main, model, clock=clock, observer=observer)
    assert model.sizes == [4]
    assert observer.of("cancelled") == [(1,)]
    assert sorted(observer.of("finished")) == [(1, "deadline_exceeded"), (1, "ok"), (1, "ok")]
    assert not caplog.records
