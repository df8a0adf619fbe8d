"""Who is refused, who expires, who leaves."""

import asyncio
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
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import Clock, Ear, Script, begun, collect, held, marked, params, queued, release, serving


def test_expired_rows_are_never_run() -> None:
    clock, script, ear = Clock(), Script(), Ear()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, clock=clock, observer=ear) as scheduler:
            plug = held(scheduler, marked(1), params())
            await begun(model)
            late = held(scheduler, marked(2, 3), params(deadline=clock.now + 50))
            after = held(scheduler, marked(4), params())
            await queued(scheduler, late, after)
            clock.now += 50
            release(model)
            await asyncio.gather(plug, after)
            with pytest.raises(DeadlineExceeded):
                await late

    asyncio.run(main())
    assert script.passes == [[1], [4]]
    assert sorted(ear.of("finished")) == [(1, "ok"), (1, "ok"), (2, "deadline_exceeded")]
    assert ear.of("cancelled") == []


def test_a_deadline_is_kept_while_the_device_is_busy() -> None:
    script = Script()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            loop = asyncio.get_running_loop()
            running = held(scheduler, marked(1), params(5, deadline=loop.time() + 0.05))
            await begun(model)
            waiting = held(scheduler, marked(2), params(deadline=loop.time() + 0.02))
            await queued(scheduler, waiting)
            for call in (waiting, running):
                with pytest.raises(DeadlineExceeded):
                    await asyncio.wait_for(call, 10)
            assert scheduler.rows_queued == 0
            release(model)
            await scheduler.submit(marked(3), params())

    asyncio.run(main())
    assert script.passes == [[1], [3]]


def test_steps_left_at_the_deadline_are_not_run() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 10
        return rows

    model = FakeModel(function=tick)

    async def main() -> None:
        with serving(model, clock=clock) as scheduler, pytest.raises(DeadlineExceeded):
            await scheduler.submit(marked(1), params(1000, deadline=clock.now + 25))

    asyncio.run(main())
    assert len(model.sizes) == 3


def test_the_deadline_of_a_stream_ends_with_its_first_event() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 20
        return rows

    async def main() -> None:
        with serving(FakeModel(function=tick), clock=clock) as scheduler:
            events = await collect(scheduler.stream(marked(1), params(9, record=(1,), deadline=clock.now + 30)))
            assert isinstance(events[-1], Result)
            with pytest.raises(DeadlineExceeded):
                await collect(scheduler.stream(marked(1), params(9, record=(4,), deadline=clock.now + 30)))

    asyncio.run(main())


def test_a_stream_that_has_not_begun_has_no_progress_and_keeps_its_deadline() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1
        return rows

    model = FakeModel(function=tick, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, clock=clock) as scheduler:
            first = params(progress=True, deadline=clock.now + 4)
            running = asyncio.create_task(collect(scheduler.stream(marked(*range(10)), first)))
            await begun(model)
            stream = scheduler.stream(marked(1), params(progress=True, deadline=clock.now + 5))
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            release(model)
            with pytest.raises(DeadlineExceeded):
                await waiting
            assert isinstance((await running)[-1], Result)

    asyncio.run(main())
    assert len(model.sizes) == 10


def test_refusals_name_their_reason() -> None:
    clock, ear = Clock(), Ear()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1.0
        return rows

    gate = threading.Event()
    gate.set()
    model = FakeModel(function=tick, gate=gate)

    async def main() -> None:
        with serving(model, max_batch_rows=1, queue_rows=40, clock=clock, observer=ear) as scheduler:
            await scheduler.submit(marked(1), params(20))  # a second a pass
            with pytest.raises(DeadlineUnreachable):
                await scheduler.submit(marked(1), params(deadline=clock.now))
            with pytest.raises(DeadlineUnreachable):
                await scheduler.submit(marked(1), params(10, deadline=clock.now + 9))
            with pytest.raises(QueueFull):
                await scheduler.submit(marked(*range(41)), params())
            gate.clear()
            model.entered.clear()
            queue = held(scheduler, marked(*range(31)), params())
            await begun(model)
            with pytest.raises(WouldMissDeadline) as refused:
                await scheduler.submit(marked(1), params(deadline=clock.now + 20))
            assert 10 <= refused.value.retry_after <= 16
            with pytest.raises(QueueFull):
                await scheduler.submit(marked(*range(11)), params())
            with pytest.raises(QueueFull):
                scheduler.check_capacity(11)
            scheduler.check_capacity(10)
            more = held(scheduler, marked(*range(10)), params(deadline=clock.now + 1000))
            await queued(scheduler, more)
            release(model)
            await asyncio.gather(queue, more)

    asyncio.run(main())
    reasons = ["deadline_unreachable"] * 2 + ["queue_full", "would_miss_deadline", *["queue_full"] * 2]
    assert [reason for (reason,) in ear.of("rejected")] == reasons


def test_cancelled_rows_never_reach_the_model() -> None:
    script, ear = Script(), Ear()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=ear) as scheduler:
            running = held(scheduler, marked(1, 2), params(50))
            await begun(model)
            waiting = held(scheduler, marked(3, 4, 5), params())
            stays = held(scheduler, marked(6), params())
            await queued(scheduler, waiting, stays)
            for call in (waiting, running):
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            assert scheduler.rows_queued == 1
            release(model)
            await stays

    asyncio.run(main())
    assert script.passes == [[1], [6]]
    assert ear.of("cancelled") == [(3,), (2,)]


def test_a_row_cancelled_in_the_batch_leaves_it_after_the_pass() -> None:
    script = Script()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def leave(left: threading.Event) -> None:
            goes.cancel()
            loop.call_soon(left.set)

        def watched(rows: FloatRows) -> FloatRows:
            if len(rows) == 2 and len(script.passes) == 3:
                left = threading.Event()
                loop.call_soon_threadsafe(leave, left)
                left.wait(10)
            return script(rows)

        model = FakeModel(function=watched, gate=threading.Event())
        with serving(model) as scheduler:
            stays = held(scheduler, marked(1), params(9))
            await begun(model)
            goes = held(scheduler, marked(2), params(10**9))
            await queued(scheduler, goes)
            release(model)
            await stays

    asyncio.run(main())
    assert [len(rows) for rows in script.passes] == [1, 2, 2, 2, 1, 1, 1, 1, 1]


def test_closing_a_stream_drops_its_rows() -> None:
    script, ear = Script(), Ear()

    async def main() -> None:
        with serving(FakeModel(function=script), max_batch_rows=1, observer=ear) as scheduler:
            stream = scheduler.stream(marked(1, 2), params(10**9, record=(1,)))
            first = await anext(stream)
            assert isinstance(first, StepOutput)
            await stream.aclose()
            assert scheduler.rows_queued == 0
            await scheduler.submit(marked(3), params())

    asyncio.run(main())
    assert ear.of("cancelled") == [(2,)]
    assert script.passes[-1] == [3]


def test_a_request_cancelled_before_it_began_was_never_there() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model) as scheduler:
            call = held(scheduler, marked(1), params())
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert scheduler.rows_queued == 0

    asyncio.run(main())
    assert model.sizes == []
