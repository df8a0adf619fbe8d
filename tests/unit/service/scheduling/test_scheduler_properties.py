"""Properties of the scheduler: every row has the result that it has alone, whatever runs beside it."""

import asyncio
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.errors import DeadlineExceeded, ModelFailure
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StepParams, StreamProgress
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import Clock, TogetherScheduler, rows_open, streamed

SHAPE = (2, 2, 2)
POISON = 77.0


def f(rows: FloatRows) -> FloatRows:
    return np.sin(rows) * np.float32(1.25)


def is_poison(row: FloatRow) -> bool:
    return bool(row.flat[-1] == POISON)


@dataclass(frozen=True)
class Ask:
    rows: FloatRows
    params: SchedulingParams

    @property
    def poisoned(self) -> bool:
        return any(is_poison(row) for row in self.rows)


@dataclass(frozen=True)
class Alone:
    """The results of one row that runs alone, step by step."""

    y: FloatRow
    steps: int
    converged: bool
    distance: float
    drift: float
    changes: list[float]
    states: list[FloatRow]


def gap(a: FloatRow, b: FloatRow) -> float:
    return float(np.mean(np.abs(a.astype(np.float64) - b.astype(np.float64))))


def alone(x: FloatRow, step_params: StepParams, keep: NDArray[np.bool_] | None) -> Alone:
    states, changes, converged, distance = [x], [0.0], False, 0.0
    while len(states) <= step_params.steps and not converged:
        y = f(states[-1][None])[0]
        if len(states) == 1:
            distance = gap(y, x)
        if keep is not None:
            y = np.where(keep, x, y)
        changes.append(gap(y, states[-1]))
        states.append(y)
        converged = step_params.tolerance is not None and changes[-1] < step_params.tolerance
    last = states[-1]
    return Alone(last, len(states) - 1, converged, distance, gap(f(last[None])[0], last), changes, states)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    n, steps = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.uniform(-1, 1, (n, *SHAPE)).astype(np.float32)
    if draw(st.integers(0, 9)) == 0:
        rows[draw(st.integers(0, n - 1))].flat[-1] = POISON
    channels = draw(st.sampled_from([None, None, 1, SHAPE[0]]))
    step_params = StepParams(
        steps=steps,
        tolerance=draw(st.sampled_from([None, None, 0.5, 0.1, 0.02])),
        record=tuple(sorted(draw(st.sets(st.integers(0, steps), max_size=4)))),
        score=draw(st.booleans()),
    )
    keep = None if channels is None else generator.uniform(size=(n, channels, *SHAPE[1:])) < 0.3
    params = SchedulingParams(
        step_params=step_params, keep_mask=keep, key=draw(st.sampled_from("abc")), streamed=draw(st.booleans())
    )
    return Ask(rows, params)


def check(ask: Ask, result: Result, events: Sequence[StepOutput]) -> None:
    step_params, keep = ask.params.step_params, ask.params.keep_mask
    shown: dict[int, list[int]] = {i: [] for i in range(len(ask.rows))}
    for event in events:
        shown[event.index].append(event.step)
    for i, x in enumerate(ask.rows):
        want = alone(x, step_params, None if keep is None else keep[i])
        np.testing.assert_array_equal(result.rows[i], want.y)
        assert (result.steps[i], result.converged[i]) == (want.steps, want.converged)
        assert result.distance[i] == want.distance
        assert (result.drift is None) == (not step_params.score)
        assert result.drift is None or result.drift[i] == want.drift
        recorded = [step for step in step_params.record if step <= want.steps]
        assert [step.step for step in result.trajectory[i]] == recorded
        for step in result.trajectory[i]:
            np.testing.assert_array_equal(step.row, want.states[step.step])
            assert step.change == (want.changes[step.step] if step.step else None)
            assert step.index == i
        if ask.params.streamed:
            assert shown[i] == sorted({*recorded, want.steps})


async def answer(scheduler: Scheduler, ask: Ask) -> None:
    """Submit and compare. A poisoned request must fail, and no other may."""
    events: list[StepOutput] = []
    results: list[Result] = []
    try:
        if ask.params.streamed:
            async for event in streamed(scheduler, ask.rows, ask.params):
                assert not results, "something came after the result"
                if isinstance(event, StepOutput):
                    events.append(event)
                elif isinstance(event, Result):
                    results.append(event)
                else:
                    assert isinstance(event, StreamProgress)
        else:
            results.append(await scheduler.run(ask.rows, ask.params))
    except ModelFailure:
        assert ask.poisoned
        return
    assert not ask.poisoned
    check(ask, results[0], events)


WAYS = pytest.mark.parametrize("scheduler_class", [Scheduler, TogetherScheduler])
MODELS = st.fixed_dictionaries(
    {
        "buckets": st.sampled_from([None, (1, 2, 4, 8), (3, 8), (8,)]),
        "memory_rows": st.sampled_from([None, None, None, 3]),
    }
)


@WAYS
@given(st.lists(asks(), min_size=1, max_size=8), st.integers(1, 8), MODELS, st.integers(1, 3))
def test_no_row_is_lost_or_mixed_up(
    scheduler_class: type[Scheduler],
    requests: list[Ask],
    max_batch_rows: int,
    options: dict[str, tuple[int, ...] | int | None],
    devices: int,
) -> None:
    buckets, memory = options["buckets"], options["memory_rows"]
    assert not isinstance(buckets, int)
    assert not isinstance(memory, tuple)
    if buckets is not None and memory is not None and buckets[0] > memory:
        memory = buckets[0]  # a device on which nothing at all fits is another test
    models = [FakeModel(SHAPE, f, buckets, poison=is_poison, memory_rows=memory) for _ in range(devices)]

    async def main() -> None:
        scheduler = scheduler_class(*models, max_batch_rows=max_batch_rows, queue_rows=1000)
        scheduler.start()
        try:
            await asyncio.gather(*(answer(scheduler, ask) for ask in requests))
            assert scheduler.rows_queued == 0
            assert rows_open(scheduler) == 0
            assert scheduler.healthy
        finally:
            scheduler.close()
        largest = max_batch_rows if buckets is None else buckets[-1]
        sizes = {size for model in models for size in model.sizes}
        assert max(sizes) <= max(largest, *(buckets or (1,)))
        if buckets is not None:
            assert sizes <= set(buckets)

    asyncio.run(main())


@WAYS
@given(st.lists(asks(), min_size=2, max_size=8), st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_cancelled_requests_change_no_other_result(
    scheduler_class: type[Scheduler], requests: list[Ask], seed: int, devices: int
) -> None:
    chance = random.Random(seed)
    leaving = {i for i in range(len(requests)) if chance.random() < 0.5}
    models = [FakeModel(SHAPE, f, poison=is_poison) for _ in range(devices)]

    async def main() -> None:
        scheduler = scheduler_class(*models, max_batch_rows=3, queue_rows=1000)
        scheduler.start()
        try:
            tasks = [asyncio.create_task(answer(scheduler, ask)) for ask in requests]
            for i in leaving:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                tasks[i].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for i, outcome in enumerate(outcomes):
                assert outcome is None or (i in leaving and isinstance(outcome, asyncio.CancelledError))
            assert scheduler.rows_queued == 0
        finally:
            scheduler.close()
        assert rows_open(scheduler) == 0

    asyncio.run(main())


@WAYS
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 2))
def test_a_worker_that_keeps_dying_answers_everybody(
    scheduler_class: type[Scheduler], deaths: list[bool], max_batch_rows: int, devices: int
) -> None:
    def deadly(rows: FloatRows) -> FloatRows:
        if (rows[:, 0, 0, 0] == POISON).any():
            raise SystemExit
        return f(rows)

    gate = threading.Event()
    models = [FakeModel(SHAPE, deadly, gate=gate) for _ in range(devices)]

    async def main() -> None:
        scheduler = scheduler_class(*models, max_batch_rows=max_batch_rows, queue_rows=1000)
        scheduler.start()
        try:
            tasks = []
            for i, dies in enumerate(deaths):
                x = np.full((1, *SHAPE), POISON if dies else i / 20, np.float32)
                params = SchedulingParams(step_params=StepParams(steps=3), key=str(i))
                tasks.append(asyncio.create_task(scheduler.run(x, params)))
            await asyncio.sleep(0)
            gate.set()
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
            for i, (dies, outcome) in enumerate(zip(deaths, outcomes, strict=True)):
                if dies or isinstance(outcome, ModelFailure):
                    assert isinstance(outcome, ModelFailure)
                    assert any(deaths)
                else:
                    assert isinstance(outcome, Result)
                    want = alone(np.full(SHAPE, i / 20, np.float32), StepParams(steps=3), None)
                    np.testing.assert_array_equal(outcome.rows[0], want.y)
        finally:
            scheduler.close()

    asyncio.run(main())


@WAYS
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.none() | st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_no_step_begins_with_a_row_whose_deadline_has_passed(
    scheduler_class: type[Scheduler], plans: list[tuple[int, int, int | None]], max_batch_rows: int
) -> None:
    """Every step advances the clock by one second, so that no timer of the event loop interferes."""
    clock, seen = Clock(), list[tuple[float, int]]()

    def tick(rows: FloatRows) -> FloatRows:
        seen.extend((clock.now, int(row.flat[0])) for row in rows)
        clock.now += 1
        return rows

    gate = threading.Event()
    model = FakeModel(SHAPE, tick, gate=gate)

    async def main() -> None:
        scheduler = scheduler_class(model, max_batch_rows=max_batch_rows, queue_rows=1000, clock=clock)
        scheduler.start()
        try:
            tasks, ends = [], [100.0 + (10**6 if seconds is None else seconds) for _, _, seconds in plans]
            for i, (n, steps, seconds) in enumerate(plans):
                params = SchedulingParams(
                    step_params=StepParams(steps=steps), deadline=None if seconds is None else ends[i]
                )
                rows = np.full((n, *SHAPE), i, np.float32)
                tasks.append(asyncio.create_task(scheduler.run(rows, params)))
            await asyncio.sleep(0)
            gate.set()
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        finally:
            scheduler.close()
        steps_run = [[now for now, which in seen if which == i] for i in range(len(plans))]
        for (n, steps, _), outcome, end, ran in zip(plans, outcomes, ends, steps_run, strict=True):
            assert all(now < end for now in ran)
            assert len(ran) == n * steps or (isinstance(outcome, DeadlineExceeded) and len(ran) < n * steps)
            assert isinstance(outcome, Result | DeadlineExceeded)

    asyncio.run(main())
