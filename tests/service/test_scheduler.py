"""The scheduler as its callers see it: the event loop on one side, a fake model on the other."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import cast

import numpy as np
import pytest

from service.domain.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    ModelFailure,
    NotReady,
    QueueFull,
    WouldMissDeadline,
)
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Applied, Plan, Progress, Result, SchedulerLike, StepRow
from service.rows import PATIENCE
from service.scheduler import Scheduler, SchedulerObserver
from tests.service.fakes import FakeModel

Event = StepRow | Progress | Result


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Ear(SchedulerObserver):
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, tuple[object, ...]]] = []

    def of(self, name: str) -> list[tuple[object, ...]]:
        return [arguments for what, arguments in self.heard if what == name]

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        self.heard.append(("batch", (rows, padded, reason)))

    def finished(self, rows: int, outcome: str, queue_s: float, compute_s: float) -> None:
        self.heard.append(("finished", (rows, outcome)))

    def rejected(self, reason: str) -> None:
        self.heard.append(("rejected", (reason,)))

    def cancelled(self, rows: int) -> None:
        self.heard.append(("cancelled", (rows,)))

    def early_exit(self, rows: int) -> None:
        self.heard.append(("early_exit", (rows,)))

    def shed(self, batch_rows: int) -> None:
        self.heard.append(("shed", (batch_rows,)))

    def replaced(self) -> None:
        self.heard.append(("replaced", ()))


class Script:
    """f(x) = x, remembering which rows each pass held, by the value of their first pixel."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []

    def __call__(self, rows: FloatRows) -> FloatRows:
        self.passes.append([int(row.flat[0]) for row in rows])
        return rows


@contextlib.contextmanager
def serving(
    model: FakeModel,
    *,
    max_batch_rows: int = 8,
    queue_rows: int = 100,
    clock: Callable[[], float] | None = None,
    observer: SchedulerObserver | None = None,
) -> Iterator[Scheduler]:
    options = {} if clock is None else {"clock": clock}
    scheduler = Scheduler(model, max_batch_rows=max_batch_rows, queue_rows=queue_rows, observer=observer, **options)
    scheduler.start()
    try:
        yield scheduler
    finally:
        if model.gate is not None:
            model.gate.set()
        scheduler.close()
        assert not scheduler.healthy
        assert scheduler._books.total.rows == scheduler._books.total.work == 0


def marked(*values: float) -> FloatRows:
    return np.stack([np.full((1, 4, 4), value, np.float32) for value in values])


def plan(
    steps: int = 1,
    *,
    key: str = "",
    deadline: float | None = None,
    progress: bool = False,
    tolerance: float | None = None,
    record: tuple[int, ...] = (),
    score: bool = False,
) -> Plan:
    applied = Applied(steps=steps, tolerance=tolerance, record=record, score=score)
    return Plan(applied=applied, key=key, deadline=deadline, progress=progress)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def begun(model: FakeModel) -> None:
    """Until the executor is inside the model."""
    assert await asyncio.to_thread(model.entered.wait, 10)


async def queued(scheduler: Scheduler, *calls: asyncio.Task[Result]) -> None:
    """Until the tasks have put their rows into the queue."""
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    assert scheduler.rows_queued >= len(calls)


def held(scheduler: Scheduler, rows: FloatRows, the_plan: Plan) -> asyncio.Task[Result]:
    return asyncio.create_task(scheduler.submit(rows, the_plan))


# --- results -------------------------------------------------------------------------------------------------------


def test_it_is_the_seam_the_engine_knows() -> None:
    seam: type[SchedulerLike] = Scheduler
    assert seam is Scheduler


def test_steps_distance_and_drift() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            result = await scheduler.submit(marked(16, -8), plan(3, score=True))
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


def test_drift_is_measured_only_when_asked_and_costs_one_pass() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model) as scheduler:
            assert (await scheduler.submit(marked(1), plan(2))).drift is None
            assert len(model.sizes) == 2
            result = await scheduler.submit(marked(1), plan(2, score=True, record=(2,)))
            assert len(model.sizes) == 5
            assert result.steps.tolist() == [2]
            assert [step.step for step in result.trajectory[0]] == [2]

    asyncio.run(main())


def test_tolerance_returns_the_row_that_met_it() -> None:
    ear = Ear()

    async def main() -> None:
        with serving(FakeModel(), observer=ear) as scheduler:
            result = await scheduler.submit(marked(16, 1, 1024), plan(6, tolerance=1.5, score=True))
        # changes of the first: 8, 4, 2, 1; of the second: 0.5; the third is not done after six
        assert result.steps.tolist() == [4, 1, 6]
        assert result.converged.tolist() == [True, True, False]
        np.testing.assert_array_equal(result.rows, marked(1, 0.5, 16))
        assert result.drift is not None
        assert result.drift.tolist() == [0.5, 0.25, 8.0]
        assert ear.of("early_exit") == [(2,)]

    asyncio.run(main())


def test_trajectory_holds_recorded_steps_and_no_step_after_an_early_stop() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            result = await scheduler.submit(marked(16, 2), plan(4, tolerance=0.75, record=(0, 1, 3, 4)))
        first, second = result.trajectory
        assert [(s.index, s.step, s.change, s.row.flat[0]) for s in first] == [
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
            applied = Applied(steps=3, record=(1, 3), score=True)
            result = await scheduler.submit(marked(16, 16), Plan(applied=applied, keep=keep))
        expected = marked(2, 2)
        expected[0, :, :2] = 16
        np.testing.assert_array_equal(result.rows, expected)
        assert result.distance.tolist() == [8.0, 8.0]  # before the mask
        assert [step.change for step in result.trajectory[0]] == [4.0, 1.0]  # after it
        assert result.drift is not None
        assert result.drift.tolist() == [4.5, 1.0]

    asyncio.run(main())


def test_many_quiet_steps() -> None:
    def turn(rows: FloatRows) -> FloatRows:
        return (rows + 1) % 1009

    model = FakeModel(function=turn)

    async def main() -> None:
        with serving(model) as scheduler:
            result = await scheduler.submit(marked(0), plan(20_000, record=(10_000,)))
        assert result.rows.flat[0] == 20_000 % 1009
        assert result.trajectory[0][0].row.flat[0] == 10_000 % 1009
        assert result.steps.tolist() == [20_000]
        assert len(model.sizes) == 20_000

    asyncio.run(main())


def test_the_callers_rows_are_left_alone() -> None:
    rows = marked(16)

    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            await scheduler.submit(rows, plan(3))
        np.testing.assert_array_equal(rows, marked(16))

    asyncio.run(main())


@pytest.mark.parametrize(
    "rows",
    [np.zeros((0, 1, 4, 4), np.float32), np.zeros((1, 1, 4, 5), np.float32), np.zeros((1, 1, 4, 4))],
)
def test_rows_that_do_not_fit_the_model(rows: FloatRows) -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            with pytest.raises(ValueError, match="float32"):
                await scheduler.submit(rows, plan())
            with pytest.raises(ValueError, match="keep"):
                keep = np.zeros((2, 1, 4, 4), np.bool_)
                await scheduler.submit(marked(1), Plan(applied=Applied(steps=1), keep=keep))

    asyncio.run(main())


# --- batches -------------------------------------------------------------------------------------------------------


def test_padding_goes_to_the_smallest_bucket_that_fits() -> None:
    model, ear = FakeModel(buckets=(1, 4, 8)), Ear()

    async def main() -> None:
        with serving(model, max_batch_rows=64, observer=ear) as scheduler:
            for n in (1, 2, 3, 4, 5, 8, 9):
                values = [float(2**i) for i in range(n)]
                result = await scheduler.submit(marked(*values), plan())
                np.testing.assert_array_equal(result.rows, marked(*values) / 2)

    asyncio.run(main())
    assert model.sizes == [1, 4, 4, 4, 8, 8, 8, 1]
    assert ear.of("batch")[1] == (2, 4, "drained")
    assert ear.of("batch")[-2:] == [(8, 8, "full"), (1, 1, "drained")]


def test_without_buckets_the_batch_has_the_exact_number_of_rows() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model, max_batch_rows=4) as scheduler:
            await scheduler.submit(marked(1, 2, 3, 4, 5, 6, 7), plan())

    asyncio.run(main())
    assert model.sizes == [4, 3]


def test_rows_of_different_requests_share_a_batch() -> None:
    script = Script()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            first = held(scheduler, marked(1), plan(2))
            await begun(model)
            others = [held(scheduler, marked(value), plan()) for value in (2, 3)]
            await queued(scheduler, *others)
            cast(threading.Event, model.gate).set()
            await asyncio.gather(first, *others)

    asyncio.run(main())
    assert [sorted(rows) for rows in script.passes] == [[1], [1, 2, 3]]


@pytest.mark.parametrize("key", ["same", "other"])
def test_a_short_request_waits_for_one_pass_of_a_long_one(key: str) -> None:
    script = Script()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1) as scheduler:
            long = held(scheduler, marked(1), plan(1000, key="same"))
            await begun(model)
            short = held(scheduler, marked(2), plan(key=key))
            await queued(scheduler, short)
            cast(threading.Event, model.gate).set()
            await asyncio.gather(long, short)

    asyncio.run(main())
    assert 2 in script.passes[1] + script.passes[2]
    assert len(script.passes) == 1001


def test_two_callers_share_the_batch_evenly() -> None:
    script = Script()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=4) as scheduler:
            plug = held(scheduler, marked(0), plan())
            await begun(model)
            many = held(scheduler, marked(*[1] * 40), plan(key="many"))
            few = held(scheduler, marked(*[2] * 6), plan(key="few"))
            await queued(scheduler, many, few)
            cast(threading.Event, model.gate).set()
            await asyncio.gather(plug, many, few)

    asyncio.run(main())
    assert [sorted(rows) for rows in script.passes[1:4]] == [[1, 1, 2, 2]] * 3
    assert [sorted(rows) for rows in script.passes[4:]] == [[1] * 4] * 8 + [[1] * 2]


def test_a_row_is_passed_over_a_bounded_number_of_times() -> None:
    turns: list[int] = []
    young: list[asyncio.Task[Result]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def feed(rows: FloatRows) -> FloatRows:
            """Before every pass ends, another newcomer is in the queue."""
            turns.append(int(rows.flat[0]))
            if len(turns) < 150:
                admitted = threading.Event()
                loop.call_soon_threadsafe(join, admitted)
                admitted.wait(10)
            return rows

        def join(admitted: threading.Event) -> None:
            young.append(held(scheduler, marked(2), plan()))
            loop.call_soon(admitted.set)

        with serving(FakeModel(function=feed), max_batch_rows=1) as scheduler:
            await scheduler.submit(marked(1), plan(3))
            await asyncio.gather(*young)

    asyncio.run(main())
    served = [place for place, mark in enumerate(turns) if mark == 1]
    assert served == [0, PATIENCE + 1, 2 * (PATIENCE + 1)]


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_gives_every_recorded_step_and_every_last_step_in_order() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            events = await collect(scheduler.stream(marked(16, 1), plan(4, tolerance=0.75, record=(0, 2), score=True)))
        steps = [event for event in events if isinstance(event, StepRow)]
        assert [s.step for s in steps if s.index == 0] == [0, 2, 4]
        assert [s.step for s in steps if s.index == 1] == [0, 1]
        assert [s.change for s in steps if s.index == 0] == [None, 4.0, 1.0]
        assert [s.row.flat[0] for s in steps if s.index == 1] == [1.0, 0.5]
        assert len(events) == len(steps) + 1
        result = events[-1]
        assert isinstance(result, Result)
        assert [[s.step for s in path] for path in result.trajectory] == [[0, 2], [0]]

    asyncio.run(main())


def test_progress_comes_at_least_once_a_second() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 0.3
        return rows

    async def main() -> None:
        with serving(FakeModel(function=tick), clock=clock) as scheduler:
            events = await collect(scheduler.stream(marked(1, 2), plan(40, progress=True)))
            silent = await collect(scheduler.stream(marked(1, 2), plan(40)))
        progress = [event for event in events if isinstance(event, Progress)]
        done = [event.steps_done for event in progress]
        assert done == sorted(done)
        assert all(later - earlier <= 3 for earlier, later in zip(done, done[1:], strict=False))
        assert done[0] <= 3
        assert done[-1] >= 37
        assert {(event.steps, event.rows, event.rows_done) for event in progress[:-1]} == {(40, 2, 0)}
        assert not any(isinstance(event, Progress) for event in silent)

    asyncio.run(main())


# --- deadlines -----------------------------------------------------------------------------------------------------


def test_expired_rows_are_never_run() -> None:
    clock, script, ear = Clock(), Script(), Ear()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, clock=clock, observer=ear) as scheduler:
            plug = held(scheduler, marked(1), plan())
            await begun(model)
            late = held(scheduler, marked(2, 3), plan(deadline=clock.now + 50))
            after = held(scheduler, marked(4), plan())
            await queued(scheduler, late, after)
            clock.now += 50
            cast(threading.Event, model.gate).set()
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
            running = held(scheduler, marked(1), plan(5, deadline=loop.time() + 0.05))
            await begun(model)
            waiting = held(scheduler, marked(2), plan(deadline=loop.time() + 0.02))
            await queued(scheduler, waiting)
            for call in (waiting, running):
                with pytest.raises(DeadlineExceeded):
                    await asyncio.wait_for(call, 10)
            assert scheduler.rows_queued == 0
            cast(threading.Event, model.gate).set()
            await scheduler.submit(marked(3), plan())

    asyncio.run(main())
    assert script.passes == [[1], [3]]


def test_steps_left_at_the_deadline_are_not_run() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 10
        return rows

    model = FakeModel(function=tick)

    async def main() -> None:
        with serving(model, clock=clock) as scheduler:
            with pytest.raises(DeadlineExceeded):
                await scheduler.submit(marked(1), plan(1000, deadline=clock.now + 25))

    asyncio.run(main())
    assert len(model.sizes) == 3


def test_the_deadline_of_a_stream_ends_with_its_first_event() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 20
        return rows

    async def main() -> None:
        with serving(FakeModel(function=tick), clock=clock) as scheduler:
            events = await collect(scheduler.stream(marked(1), plan(9, record=(1,), deadline=clock.now + 30)))
            assert isinstance(events[-1], Result)
            with pytest.raises(DeadlineExceeded):
                await collect(scheduler.stream(marked(1), plan(9, record=(4,), deadline=clock.now + 30)))

    asyncio.run(main())


def test_refusals_name_their_reason() -> None:
    clock, ear = Clock(), Ear()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1.0
        return rows

    model = FakeModel(function=tick, gate=threading.Event())
    cast(threading.Event, model.gate).set()

    async def main() -> None:
        with serving(model, max_batch_rows=1, queue_rows=40, clock=clock, observer=ear) as scheduler:
            await scheduler.submit(marked(1), plan(20))  # a second a pass
            with pytest.raises(DeadlineUnreachable):
                await scheduler.submit(marked(1), plan(deadline=clock.now))
            with pytest.raises(DeadlineUnreachable):
                await scheduler.submit(marked(1), plan(10, deadline=clock.now + 9))
            with pytest.raises(QueueFull):
                await scheduler.submit(marked(*range(41)), plan())
            cast(threading.Event, model.gate).clear()
            model.entered.clear()
            queue = held(scheduler, marked(*range(31)), plan())
            await begun(model)
            with pytest.raises(WouldMissDeadline) as refused:
                await scheduler.submit(marked(1), plan(deadline=clock.now + 20))
            assert 10 <= refused.value.retry_after <= 16
            with pytest.raises(QueueFull):
                await scheduler.submit(marked(*range(11)), plan())
            more = held(scheduler, marked(*range(10)), plan(deadline=clock.now + 1000))
            await queued(scheduler, more)
            cast(threading.Event, model.gate).set()
            await asyncio.gather(queue, more)

    asyncio.run(main())
    reasons = ["deadline_unreachable"] * 2 + ["queue_full", "would_miss_deadline", "queue_full"]
    assert [reason for (reason,) in ear.of("rejected")] == reasons


# --- cancellation --------------------------------------------------------------------------------------------------


def test_cancelled_rows_never_reach_the_model() -> None:
    script, ear = Script(), Ear()
    model = FakeModel(function=script, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=ear) as scheduler:
            running = held(scheduler, marked(1, 2), plan(50))
            await begun(model)
            waiting = held(scheduler, marked(3, 4, 5), plan())
            stays = held(scheduler, marked(6), plan())
            await queued(scheduler, waiting, stays)
            for call in (waiting, running):
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            assert scheduler.rows_queued == 1
            cast(threading.Event, model.gate).set()
            await stays

    asyncio.run(main())
    assert script.passes == [[1], [6]]
    assert ear.of("cancelled") == [(3,), (2,)]


def test_closing_a_stream_drops_its_rows() -> None:
    script, ear = Script(), Ear()

    async def main() -> None:
        with serving(FakeModel(function=script), max_batch_rows=1, observer=ear) as scheduler:
            stream = cast(
                AsyncGenerator[Event, None],
                scheduler.stream(marked(1, 2), plan(10**9, record=(1,))),
            )
            first = await anext(stream)
            assert isinstance(first, StepRow)
            await stream.aclose()
            assert scheduler.rows_queued == 0
            await scheduler.submit(marked(3), plan())

    asyncio.run(main())
    assert ear.of("cancelled") == [(2,)]
    assert script.passes[-1] == [3]


def test_a_request_cancelled_before_it_began_was_never_there() -> None:
    model = FakeModel()

    async def main() -> None:
        with serving(model) as scheduler:
            call = held(scheduler, marked(1), plan())
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert scheduler.rows_queued == 0

    asyncio.run(main())
    assert model.sizes == []


# --- failures ------------------------------------------------------------------------------------------------------


def is_poison(row: FloatRow) -> bool:
    return bool(row.flat[0] == 13)


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
def test_a_poison_row_fails_alone(place: int, buckets: tuple[int, ...] | None) -> None:
    model = FakeModel(gate=threading.Event(), poison=is_poison, buckets=buckets)

    async def main() -> None:
        with serving(model) as scheduler:
            plug = held(scheduler, marked(0), plan())
            await begun(model)
            values = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
            values.insert(place, 13.0)
            calls = [held(scheduler, marked(value), plan(2)) for value in values]
            await queued(scheduler, *calls)
            cast(threading.Event, model.gate).set()
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
    script = Script()
    model = FakeModel(function=script, poison=is_poison)

    async def main() -> None:
        with serving(model, max_batch_rows=2) as scheduler:
            with pytest.raises(ModelFailure):
                await scheduler.submit(marked(1, 13, 3, 4), plan(100))

    asyncio.run(main())
    assert script.passes == [[1]]


def test_a_failure_amid_quiet_steps() -> None:
    def climb(rows: FloatRows) -> FloatRows:
        return rows + 1

    async def main() -> None:
        with serving(FakeModel(function=climb, poison=is_poison)) as scheduler:
            bad, good = await asyncio.gather(
                scheduler.submit(marked(0), plan(50)),
                scheduler.submit(marked(100), plan(50)),
                return_exceptions=True,
            )
        assert isinstance(bad, ModelFailure)
        assert isinstance(good, Result)
        np.testing.assert_array_equal(good.rows, marked(150))

    asyncio.run(main())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("steps", [1, 20])
def test_output_that_is_not_finite_is_a_failure_of_its_row(bad: float, steps: int) -> None:
    def sometimes(rows: FloatRows) -> FloatRows:
        y = rows + 1
        y[y[:, 0, 0, 0] == steps, :, 2, 2] = bad
        return y

    async def main() -> None:
        with serving(FakeModel(function=sometimes)) as scheduler:
            calls = [held(scheduler, marked(value), plan(steps)) for value in (0, 100)]
            failed, fine = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(failed, ModelFailure)
            assert "finite" in failed.detail
            assert isinstance(fine, Result)

    asyncio.run(main())


def test_a_model_that_loses_rows_is_a_failure() -> None:
    class Short(FakeModel):
        def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
            return rows[:1]

    async def main() -> None:
        with serving(Short()) as scheduler:
            with pytest.raises(ModelFailure):
                await scheduler.submit(marked(1, 2, 3), plan(record=(1,)))

    asyncio.run(main())


@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
def test_out_of_memory_lowers_the_largest_batch(buckets: tuple[int, ...] | None) -> None:
    model, ear = FakeModel(memory_rows=3, buckets=buckets), Ear()

    async def main() -> None:
        with serving(model, observer=ear) as scheduler:
            values = [float(2**i) for i in range(8)]
            for _ in range(2):
                result = await scheduler.submit(marked(*values), plan(2))
                np.testing.assert_array_equal(result.rows, marked(*values) / 4)
            tried = len(model.sizes)
            await scheduler.submit(marked(*values), plan())
            assert model.sizes[tried:] == [2, 2, 2, 2]

    asyncio.run(main())
    assert model.sheds == 2
    assert ear.of("shed") == [(2,)]


def test_a_row_that_does_not_fit_the_device_alone_fails() -> None:
    model = FakeModel(memory_rows=0)

    async def main() -> None:
        with serving(model) as scheduler:
            with pytest.raises(ModelFailure):
                await scheduler.submit(marked(1, 2), plan())
            model.memory_rows = None
            await scheduler.submit(marked(1, 2), plan())

    asyncio.run(main())


class Witness(logging.Handler):
    """Looks at the scheduler's health when the death is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler | None = None
        self.healthy: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.scheduler is not None:
            self.healthy.append(self.scheduler.healthy)


@pytest.fixture
def witness() -> Iterator[Witness]:
    handler, logger = Witness(), logging.getLogger("service.executor")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_worker_that_dies_in_a_pass_is_replaced(witness: Witness) -> None:
    ear = Ear()

    def deadly(rows: FloatRows) -> FloatRows:
        if any(is_poison(row) for row in rows):
            raise SystemExit
        return rows * np.float32(0.5)

    model = FakeModel(function=deadly, gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=ear) as scheduler:
            witness.scheduler = scheduler
            assert scheduler.healthy
            bystander = held(scheduler, marked(8), plan(3))
            await begun(model)
            dead = held(scheduler, marked(13, 1), plan())
            await queued(scheduler, dead)
            cast(threading.Event, model.gate).set()
            with pytest.raises(ModelFailure):
                await dead
            np.testing.assert_array_equal((await bystander).rows, marked(1))
            assert scheduler.healthy

    asyncio.run(main())
    assert witness.healthy == [False]
    assert ear.of("replaced") == [()]
    assert sorted(ear.of("finished")) == [(1, "ok"), (2, "model_failure")]


def test_a_worker_that_dies_between_passes_leaves_nobody_waiting(witness: Witness) -> None:
    class Deaf(Ear):
        broken = False

        def queued(self, rows: int) -> None:
            if self.broken and threading.current_thread() is not threading.main_thread():
                raise ZeroDivisionError

    ear = Deaf()
    model = FakeModel(gate=threading.Event())

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=ear) as scheduler:
            witness.scheduler = scheduler
            running = held(scheduler, marked(1), plan(2))
            await begun(model)
            waiting = held(scheduler, marked(2), plan())
            await queued(scheduler, waiting)
            ear.broken = True
            cast(threading.Event, model.gate).set()
            for call in (running, waiting):
                with pytest.raises(ModelFailure):
                    await call
            ear.broken = False
            await scheduler.submit(marked(3), plan())

    asyncio.run(main())
    assert witness.healthy == [False]


# --- life and death ------------------------------------------------------------------------------------------------


def test_before_start_it_is_not_ready() -> None:
    async def main() -> None:
        scheduler = Scheduler(FakeModel(), max_batch_rows=1, queue_rows=1)
        assert not scheduler.healthy
        with pytest.raises(NotReady):
            await scheduler.submit(marked(1), plan())
        scheduler.close()

    asyncio.run(main())


def test_drain_finishes_what_is_there_and_refuses_the_rest() -> None:
    model = FakeModel(gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            call = held(scheduler, marked(4), plan(2))
            await begun(model)
            assert not await scheduler.drain(0.01)
            with pytest.raises(Draining):
                await scheduler.submit(marked(1), plan())
            cast(threading.Event, model.gate).set()
            assert await scheduler.drain(10)
            np.testing.assert_array_equal((await call).rows, marked(1))
            assert await scheduler.drain(0)

    asyncio.run(main())


def test_close_fails_what_is_left() -> None:
    model, ear = FakeModel(gate=threading.Event()), Ear()

    async def main() -> None:
        with serving(model, max_batch_rows=1, observer=ear) as scheduler:
            call = held(scheduler, marked(1, 2), plan(5))
            stream = asyncio.create_task(collect(scheduler.stream(marked(1), plan(5))))
            await begun(model)
            scheduler.close(0)
            for waiting in (call, stream):
                with pytest.raises(Draining):
                    await waiting
            with pytest.raises(Draining):
                await scheduler.submit(marked(1), plan())
            cast(threading.Event, model.gate).set()

    asyncio.run(main())
    assert len(model.sizes) == 1
    assert sorted(ear.of("finished")) == [(1, "draining"), (2, "draining")]


def test_a_loop_that_is_gone_does_not_hurt_the_executor() -> None:
    model = FakeModel(gate=threading.Event())

    async def abandon(scheduler: Scheduler) -> None:
        task = held(scheduler, marked(1), plan(record=(1,)))
        await begun(model)
        task.cancel()

    async def again(scheduler: Scheduler) -> Result:
        return await scheduler.submit(marked(4), plan())

    with serving(model) as scheduler:
        asyncio.run(abandon(scheduler))
        cast(threading.Event, model.gate).set()
        assert asyncio.run(again(scheduler)).rows.flat[0] == 2.0
        assert scheduler.healthy
