"""Refusals, deadlines and cancellation."""

import asyncio
import math
import threading

import pytest

from service.domain.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    QueueFull,
    WouldMissDeadline,
)
from service.domain.latents import FloatRows
from service.domain.tasks import Result, StepOutput
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
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


def test_expired_rows_are_never_run() -> None:
    clock, recorded, observer = Clock(), RecordingFunction(), RecordingObserver()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, clock=clock, observer=observer) as scheduler:
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

    asyncio.run(main())
    assert recorded.batches == [[1], [4]]
    assert sorted(observer.of("finished")) == [(1, "ok"), (1, "ok"), (2, "deadline_exceeded")]
    assert observer.of("cancelled") == []


def test_a_deadline_is_kept_while_the_device_is_busy() -> None:
    recorded = RecordingFunction()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
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

    asyncio.run(main())
    assert recorded.batches == [[1], [3]]


def test_steps_left_at_the_deadline_are_not_run() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 10
        return rows

    model = FakeModel(function=tick)

    async def main() -> None:
        with serving(model, clock=clock) as scheduler, pytest.raises(DeadlineExceeded):
            await scheduler.run(marked(1), params(1000, deadline=clock.now + 25))

    asyncio.run(main())
    assert len(model.sizes) == 3


def test_the_deadline_of_a_stream_ends_with_its_first_event() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 20
        return rows

    async def main() -> None:
        with serving(FakeModel(function=tick), clock=clock) as scheduler:
            events = await collect(streamed(scheduler, marked(1), params(9, record=(1,), deadline=clock.now + 30)))
            assert isinstance(events[-1], Result)
            with pytest.raises(DeadlineExceeded):
                await collect(streamed(scheduler, marked(1), params(9, record=(4,), deadline=clock.now + 30)))

    asyncio.run(main())


def test_a_stream_that_has_not_begun_has_no_progress_and_keeps_its_deadline() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1
        return rows

    model = FakeModel(function=tick, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, clock=clock) as scheduler:
            first = params(deadline=clock.now + 4)
            running = asyncio.create_task(collect(streamed(scheduler, marked(*range(10)), first)))
            await until_running(model)
            stream = streamed(scheduler, marked(1), params(deadline=clock.now + 5))
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            release(model)
            with pytest.raises(DeadlineExceeded):
                await waiting
            assert isinstance((await running)[-1], Result)

    asyncio.run(main())
    assert len(model.sizes) == 10


def test_refusals_name_their_reason() -> None:
    clock, observer = Clock(), RecordingObserver()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1.0
        return rows

    gate = threading.Event()
    gate.set()
    model = FakeModel(function=tick, gate=gate)

    async def main() -> None:
        with serving(model, max_batch_rows=1, queue_rows=40, clock=clock, observer=observer) as scheduler:
            await scheduler.run(marked(1), params(20))  # one second a step
            with pytest.raises(DeadlineUnreachable):
                await scheduler.run(marked(1), params(deadline=clock.now))
            with pytest.raises(DeadlineUnreachable):
                await scheduler.run(marked(1), params(10, deadline=clock.now + 9))
            with pytest.raises(QueueFull):
                await scheduler.run(marked(*range(41)), params())
            gate.clear()
            model.entered.clear()
            queue = submitted(scheduler, marked(*range(31)), params())
            await until_running(model)
            with pytest.raises(WouldMissDeadline) as refused:
                await scheduler.run(marked(1), params(deadline=clock.now + 20))
            assert 10 <= refused.value.retry_after <= 16
            with pytest.raises(QueueFull):
                await scheduler.run(marked(*range(11)), params())
            with pytest.raises(QueueFull):
                await scheduler.check_capacity(11)
            await scheduler.check_capacity(10)
            more = submitted(scheduler, marked(*range(10)), params(deadline=clock.now + 1000))
            await until_queued(scheduler, more)
            release(model)
            await asyncio.gather(queue, more)

    asyncio.run(main())
    reasons = ["deadline_unreachable"] * 2 + ["queue_full", "would_miss_deadline", *["queue_full"] * 2]
    assert [reason for (reason,) in observer.of("rejected")] == reasons


def test_room_is_promised_once() -> None:
    """Rows that are being made count, whether their requests came together or one after the other."""
    observer = RecordingObserver()

    async def refused(scheduler: Scheduler, rows: int) -> bool:
        expected = scheduler.refusal(rows)
        try:
            async with scheduler.room_for(rows, math.inf):
                return False
        except QueueFull:
            assert isinstance(expected, QueueFull)
            return True

    async def main() -> None:
        with serving(FakeModel(), queue_rows=10, observer=observer) as scheduler:
            async with scheduler.room_for(6, math.inf):
                assert await refused(scheduler, 5)
                assert not await refused(scheduler, 4)
                async with scheduler.room_for(4, math.inf):
                    assert await refused(scheduler, 1)
                with pytest.raises(ZeroDivisionError):
                    async with scheduler.room_for(4, math.inf):
                        raise ZeroDivisionError
                assert not await refused(scheduler, 4)
            assert scheduler.refusal(10) is None
            await scheduler.run(marked(*range(10)), params())

    asyncio.run(main())
    assert observer.of("rejected") == [("queue_full",)] * 2


def test_cancelled_rows_never_reach_the_model() -> None:
    recorded, observer = RecordingFunction(), RecordingObserver()
    model = FakeModel(function=recorded, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=observer) as scheduler:
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

    asyncio.run(main())
    assert recorded.batches == [[1], [6]]
    assert observer.of("cancelled") == [(3,), (2,)]


def test_a_row_cancelled_in_the_batch_leaves_it_after_the_step() -> None:
    recorded = RecordingFunction()

    async def main() -> None:
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

        model = FakeModel(function=watched, gate=threading.Event())
        with serving(model) as scheduler:
            stays = submitted(scheduler, marked(1), params(9))
            await until_running(model)
            goes = submitted(scheduler, marked(2), params(10**9))
            await until_queued(scheduler, goes)
            release(model)
            await stays

    asyncio.run(main())
    assert [len(rows) for rows in recorded.batches] == [1, 2, 2, 2, 1, 1, 1, 1, 1]


def test_closing_a_stream_drops_its_rows() -> None:
    recorded, observer = RecordingFunction(), RecordingObserver()

    async def main() -> None:
        with serving(FakeModel(function=recorded), max_batch_rows=1, observer=observer) as scheduler:
            stream = streamed(scheduler, marked(1, 2), params(10**9, record=(1,)))
            first = await anext(stream)
            assert isinstance(first, StepOutput)
            await stream.aclose()
            assert scheduler.rows_queued == 0
            await scheduler.run(marked(3), params())

    asyncio.run(main())
    assert observer.of("cancelled") == [(2,)]
    assert recorded.batches[-1] == [3]


def test_a_request_cancelled_before_it_began_leaves_no_trace() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model) as scheduler:
            call = submitted(scheduler, marked(1), params())
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert scheduler.rows_queued == 0

    asyncio.run(main())
    assert model.sizes == []
