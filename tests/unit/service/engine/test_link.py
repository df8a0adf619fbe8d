"""A front end and an engine: the same results as in one process, and what happens when one of them ends."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from service.domain.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    IgnError,
    ModelFailure,
    NotReady,
    QueueFull,
    UnknownModel,
)
from service.domain.latents import FloatRows
from service.domain.tasks import KeepMask, Result, SchedulingParams, StepOutput, StepParams
from service.engine.slots import SLOTS
from service.models.registry import ServedModel
from service.scheduling.interface import Event
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import collect, marked, params, release, serving, submitted, until_running
from tests.unit.service.engine.stage import SHAPE, Engine, Front, loaded, play, until

MASK: KeepMask = np.zeros((2, 1, 4, 4), np.bool_)
MASK[:, :, 0] = True


def gated() -> FakeModel:
    return FakeModel(SHAPE, gate=threading.Event())


def same(a: Result, b: Result) -> None:
    for name in ("rows", "steps", "converged", "distance", "drift"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert [list(map(shown, row)) for row in a.trajectory] == [list(map(shown, row)) for row in b.trajectory]


def shown(step: StepOutput) -> tuple[object, ...]:
    return step.index, step.step, step.row.tolist(), step.change


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        (marked(1), params()),
        (marked(1, -2, 3), params(steps=7, key="clé", request_id="r" * 100)),
        (marked(1, 2), params(score=True)),
        (marked(*range(64)), params(steps=2)),
        (marked(*range(65)), params(steps=2)),  # more than a slot holds
        (marked(1, 2), params(key="k" * 300)),
        (marked(1, 2), params(steps=30, tolerance=0.01)),
        (marked(1, 2), params(steps=5, record=(0, 2, 5))),
        (marked(1, 2), SchedulingParams(step_params=StepParams(steps=3), keep_mask=MASK)),
    ],
)
def test_results_are_those_of_one_process(rows: FloatRows, asked: SchedulingParams, tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        with serving(FakeModel(SHAPE)) as scheduler:
            same(await model.scheduler.submit(rows, asked), await scheduler.submit(rows, asked))
            there, here = (
                await collect(model.scheduler.stream(rows, asked)),
                await collect(scheduler.stream(rows, asked)),
            )
        assert [shown(event) for event in there if isinstance(event, StepOutput)] == [
            shown(event) for event in here if isinstance(event, StepOutput)
        ]
        assert isinstance(there[-1], Result)
        assert isinstance(here[-1], Result)
        same(there[-1], here[-1])

    play(tmp_path, script, FakeModel(SHAPE))


def test_more_requests_than_slots(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        for _ in range(2):  # every slot comes back
            asked = [model.scheduler.submit(marked(i), params()) for i in range(SLOTS + 100)]
            results = await asyncio.gather(*asked)
            assert [float(result.rows[0, 0, 0, 0]) for result in results] == [i / 2 for i in range(SLOTS + 100)]

    play(tmp_path, script, FakeModel(SHAPE), queue_rows=10_000)


def test_requests_that_begin_together(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        ended: list[tuple[object, Event]] = []
        calls = [(marked(i), params(key=f"key {i % 3}")) for i in range(SLOTS + 100)]
        begun = model.scheduler.begin_many([*calls, (marked(*range(30_000)), params())], ended.extend)
        model.scheduler.cancel(begun[7])
        await until(lambda: len(ended) == len(begun) - 1)
        events = dict(ended)
        assert begun[7] not in events
        for number in (*range(7), *range(8, len(calls))):
            event = events[begun[number]]
            if number == 13:
                assert isinstance(event, ModelFailure)
            else:
                assert isinstance(event, Result)
                assert event.rows.max() == number / 2
        assert isinstance(events[begun[-1]], QueueFull)

    play(tmp_path, script, FakeModel(SHAPE, failures={13.0: "not this one"}), queue_rows=10_000)


def test_errors_are_those_of_one_process(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        with pytest.raises(ModelFailure) as failed:
            await model.scheduler.submit(marked(13), params())
        assert failed.value.reason == "not this one"
        with pytest.raises(ValueError, match="rows must be"):
            await model.scheduler.submit(np.zeros((1, 2, 2, 2), np.float32), params())
        with pytest.raises(DeadlineUnreachable):
            await model.scheduler.submit(marked(1), params(deadline=1.0))
        for rows in (marked(*range(60)), marked(*range(200))):
            with pytest.raises(QueueFull) as refused:
                await model.scheduler.submit(rows, params())
            assert refused.value.retry_after >= 1
        with pytest.raises(QueueFull):
            await model.scheduler.check_capacity(60)
        await model.scheduler.check_capacity(1)

    play(tmp_path, script, FakeModel(SHAPE, failures={13.0: "not this one"}), queue_rows=50)


@pytest.mark.parametrize("asked", [params(), params(record=(1,))])
def test_a_cancelled_request_leaves_the_queue_and_its_slot_comes_back(asked: SchedulingParams, tmp_path: Path) -> None:
    function = gated()

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        there = engine.registry.resolve().scheduler
        running = asyncio.create_task(model.scheduler.submit(marked(1), params()))
        await until_running(function)
        waiting = [asyncio.create_task(model.scheduler.submit(marked(2), asked)) for _ in range(50)]
        await until(lambda: there.rows_queued == 50)
        for one in waiting:
            one.cancel()
        await until(lambda: there.rows_queued == 0)
        release(function)
        await running
        await asyncio.gather(*(model.scheduler.submit(marked(i), params()) for i in range(SLOTS)))
        assert (model.statistics.counts()).fail.count == 50

    play(tmp_path, script, function, queue_rows=SLOTS)


def test_a_cancellation_in_the_turn_of_the_request(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        delivered: list[object] = []
        for _ in range(3 * SLOTS):
            handle = model.scheduler.begin(marked(1), params(), delivered.append, streamed=False)
            model.scheduler.cancel(handle)
            model.scheduler.cancel(handle)
            if len(delivered) % 7 == 0:
                await asyncio.sleep(0)
        await model.scheduler.submit(marked(1), params())
        assert delivered == []

    play(tmp_path, script, FakeModel(SHAPE))


def test_the_rows_of_a_front_end_that_dies_are_dropped(tmp_path: Path) -> None:
    function = gated()

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        there = engine.registry.resolve().scheduler
        assert isinstance(there, Scheduler)
        dying = Front()
        other = await dying.open(engine)
        assert engine.host.fronts == 2
        asked = [submitted(other.scheduler, marked(i), params(record=(1,) if i % 2 else ())) for i in range(20)]
        await until(lambda: there.rows_open == 20)
        await dying.close()
        await until(lambda: engine.host.fronts == 1)
        assert all(isinstance(end, NotReady) for end in await asyncio.gather(*asked, return_exceptions=True))
        assert there.rows_open == 0
        release(function)
        assert (await model.scheduler.submit(marked(4), params())).rows[0, 0, 0, 0] == 2

    play(tmp_path, script, function)


def test_when_the_engine_dies_nothing_hangs_and_the_next_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = gated()

    def versions(_: str) -> list[str]:
        assert function.gate is not None
        function.gate.wait()  # so that the engine dies before it answers
        return []

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        monkeypatch.setattr(engine.repository, "versions", versions)
        asked = [submitted(model.scheduler, marked(1), params(record=record)) for record in [(), (1,)]]
        call = asyncio.create_task(front.registry.load("toy"))
        await until_running(function)
        await engine.host.close()
        for one in (*asked, call):
            with pytest.raises(NotReady) as failed:
                await one
            assert failed.value.retry_after > 0
        assert front.serving[-1] is False
        assert not model.scheduler.healthy
        for coroutine in (model.scheduler.submit(marked(1), params()), front.registry.index(), model.statistics.read()):
            with pytest.raises(NotReady):
                await coroutine
        following = Engine(tmp_path)
        try:
            await following.serve(loaded(FakeModel(SHAPE)))
            again = await front.open(following)
            assert again is not model
            assert (await again.scheduler.submit(marked(4), params())).rows[0, 0, 0, 0] == 2
            with pytest.raises(NotReady):
                await model.scheduler.submit(marked(1), params())
            await until(lambda: again.scheduler.healthy)
        finally:
            await following.close()

    play(tmp_path, script, function)


def test_a_stuck_engine_is_noticed_and_nothing_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function = gated()

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        one = submitted(model.scheduler, marked(1), params())
        stream = asyncio.create_task(collect(model.scheduler.stream(marked(1), params(record=(0, 1)))))
        await until_running(function)
        monkeypatch.setattr("service.engine.connection._SILENCE_S", 0.0)
        assert not model.scheduler.healthy
        for waiting in (one, stream, submitted(model.scheduler, marked(1), params())):
            with pytest.raises(NotReady):
                await waiting
        monkeypatch.setattr("service.engine.connection._SILENCE_S", 3600.0)
        release(function)
        assert (await model.scheduler.submit(marked(4), params())).rows[0, 0, 0, 0] == 2

    play(tmp_path, script, function)


def test_a_deadline_that_a_stuck_engine_lets_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.connection._GRACE_S", -3600.0)
    function = gated()

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        loop = asyncio.get_running_loop()
        for record in [(), (1,)]:
            with pytest.raises(DeadlineExceeded):
                await model.scheduler.submit(marked(1), params(deadline=loop.time() + 600, record=record))

    play(tmp_path, script, function)


def test_a_deadline_while_a_stuck_engine_is_asked_for_room(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        deadline = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            async with model.scheduler.room_for(1, deadline):
                raise AssertionError("there is no room yet")

    play(tmp_path, script, FakeModel(SHAPE))


def test_loading_and_unloading_are_known_to_every_front_end_before_the_answer(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        other = Front()
        old = await other.open(engine)
        try:
            engine.on_disk["toy/2"] = loaded(FakeModel(SHAPE, lambda rows: rows * np.float32(3)), "2")
            other.requests_end.clear()
            await front.registry.load("toy")
            assert list(other.registry.models) == list(front.registry.models) == ["toy/1", "toy/2"]
            assert (await other.registry.resolve().scheduler.submit(marked(1), params())).rows.max() == 3
            del engine.on_disk["toy/1"]
            await other.registry.load("toy")
            assert list(front.registry.models) == ["toy/2"]
            assert [entry.state for entry in await front.registry.index()] == ["UNLOADING", "READY"]
            assert (await old.scheduler.submit(marked(1), params())).rows.max() == 0.5  # resolved before
            other.requests_end.set()
            await until(lambda: not engine.registry._retiring)
            with pytest.raises(IgnError):
                await old.scheduler.submit(marked(1), params())
            with pytest.raises(UnknownModel):
                await front.registry.load("nope")
        finally:
            await other.close()

    play(tmp_path, script, FakeModel(SHAPE))


def test_abort_ends_the_requests_of_one_front_end_only(tmp_path: Path) -> None:
    function = gated()

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        other = Front()
        try:
            theirs = submitted((await other.open(engine)).scheduler, marked(2), params())
            ours = submitted(model.scheduler, marked(1), params())
            await until_running(function)
            front.registry.abort_all()
            with pytest.raises(Draining):
                await ours
            release(function)
            assert (await theirs).rows[0, 0, 0, 0] == 1
        finally:
            await other.close()

    play(tmp_path, script, function)
