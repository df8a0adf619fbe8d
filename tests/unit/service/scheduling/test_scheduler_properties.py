"""Properties of the scheduler: every row has the result that it has alone, whatever runs beside
it.
"""

import asyncio
import math
import random
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.errors import DeadlineExceeded, InvalidContent, ModelFailure
from service.domain.latents import FloatRow, FloatRows
from service.domain.steps import mean_changes
from service.domain.tasks import Result, SchedulingParams, StepOutput, StepParams, StreamProgress
from service.domain.tiles import Tiling
from service.scheduling.request import Event, ScheduledRequest
from service.scheduling.scheduler import Scheduler
from service.scheduling.tiled import TiledRun
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import Clock, Reports, params, play, rows_open

SHAPE = (2, 2, 2)
# what f does with a row whose last value has counted up to this
RAISES = 200.0
NOT_FINITE = 300.0


def f(rows: FloatRows) -> FloatRows:
    y = np.sin(rows) * np.float32(1.25)
    counts = rows.reshape(len(rows), -1)[:, -1]
    y.reshape(len(rows), -1)[:, -1] = np.where(
        counts >= 100, counts + 1, y.reshape(len(rows), -1)[:, -1]
    )
    is_bad = counts == NOT_FINITE
    y[is_bad] = np.where(rows[is_bad] > 0, np.inf, np.nan)  # infinite where x is positive
    return y


def raises(row: FloatRow) -> bool:
    return bool(row.flat[-1] == RAISES)


@dataclass(frozen=True)
class Ask:
    rows: FloatRows
    params: SchedulingParams


@dataclass(frozen=True)
class Alone:
    """The results of one row that runs alone, step by step."""

    converged: bool
    distance: float
    drift: float
    changes: list[float]
    states: list[FloatRow]


def gap(a: FloatRow, b: FloatRow) -> float:
    return float(np.mean(np.abs(a.astype(np.float64) - b.astype(np.float64))))


def alone(x: FloatRow, step_params: StepParams, keep: NDArray[np.bool_] | None) -> Alone | None:
    """None if the model fails on the row."""
    states = [x]
    changes = [0.0]
    converged = False
    distance = 0.0
    drift = 0.0
    last = step_params.steps + step_params.score
    for step in range(1, last + 1):
        if raises(states[-1]) or states[-1].flat[-1] == NOT_FINITE:
            return None
        y = f(states[-1][None])[0]
        if converged or step > step_params.steps:
            drift = gap(y, states[-1])
            break
        if step == 1:
            distance = gap(y, x)
        if keep is not None:
            y = np.where(keep, x, y)
        changes.append(gap(y, states[-1]))
        states.append(y)
        converged = step_params.tolerance is not None and changes[-1] < step_params.tolerance
        if converged and not step_params.score:
            break
    return Alone(converged, distance, drift, changes, states)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    n = draw(st.integers(1, 4))
    steps = draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.uniform(-1, 1, (n, *SHAPE)).astype(np.float32)
    if draw(st.integers(0, 9)) == 0:
        fault = draw(st.sampled_from([RAISES, NOT_FINITE])) - draw(st.integers(0, 9))
        rows[draw(st.integers(0, n - 1))].flat[-1] = fault
    channels = draw(st.sampled_from([None, None, None, 1, SHAPE[0]]))
    step_params = StepParams(
        steps=steps,
        tolerance=draw(st.sampled_from([None, None, None, 0.5, 0.1, 0.02])),
        record=tuple(sorted(draw(st.just(set()) | st.sets(st.integers(0, steps), max_size=4)))),
        score=draw(st.booleans()),
    )
    scheduling = SchedulingParams(
        step_params=step_params,
        keep_mask=None
        if channels is None
        else generator.uniform(size=(n, channels, *SHAPE[1:])) < 0.3,
        key=draw(st.sampled_from("abc")),
        streamed=draw(st.booleans()),
    )
    return Ask(rows, scheduling)


def plain(n: int, value: float, steps: int = 1) -> Ask:
    return Ask(np.full((n, *SHAPE), value, np.float32), params(steps))


mixes = st.lists(
    asks() | st.builds(plain, st.integers(1, 5), st.floats(-1, 1, width=32)),
    min_size=1,
    max_size=10,
)


def check(ask: Ask, events: Sequence[Event], near: Callable[[float], object] = float) -> None:
    """Compare what a request was told with what its rows give alone; ``near`` is for mean
    differences.
    """
    step_params = ask.params.step_params
    keep = ask.params.keep_mask
    streamed = ask.params.streamed
    wanted = [
        alone(x, step_params, None if keep is None else keep[i]) for i, x in enumerate(ask.rows)
    ]
    *before, result = events
    assert streamed or not before
    shown: dict[int, list[int]] = {i: [] for i in range(len(ask.rows))}
    for event in before:
        assert isinstance(event, StepOutput | StreamProgress)
        if isinstance(event, StepOutput):
            shown[event.index].append(event.step)
    if not isinstance(result, Result):
        assert isinstance(result, ModelFailure | InvalidContent)
        assert None in wanted
        return
    for i, want in enumerate(wanted):
        assert want is not None
        last = len(want.states) - 1
        np.testing.assert_array_equal(result.rows[i], want.states[-1])
        assert (result.steps[i], result.converged[i]) == (last, want.converged)
        assert result.distance[i] == near(want.distance)
        assert (result.drift is None) == (not step_params.score)
        assert result.drift is None or result.drift[i] == near(want.drift)
        recorded = [step for step in step_params.record if step <= last]
        assert [(step.index, step.step) for step in result.trajectory[i]] == [
            (i, step) for step in recorded
        ]
        for step in result.trajectory[i]:
            np.testing.assert_array_equal(step.row, want.states[step.step])
            # it holds no other rows
            assert step.row.base is None or step.row.base.size <= ask.rows.size
            assert step.change == (near(want.changes[step.step]) if step.step else None)
        assert not streamed or shown[i] == sorted({*recorded, last})


async def told(
    scheduler: Scheduler, mix: Sequence[Ask], leaving: dict[int, int]
) -> list[list[Event]]:
    """Submit all in one turn, and cancel some so many turns later; returns the events of each up to
    the end of all.
    """
    events = dict[ScheduledRequest, list[Event]]()
    end = asyncio.Event()
    inputs = [ask.rows.copy() for ask in mix]

    def is_over(handle: ScheduledRequest) -> bool:
        return bool(events[handle]) and not isinstance(
            events[handle][-1], StepOutput | StreamProgress
        )

    def on_events(pairs: list[tuple[ScheduledRequest, Event]]) -> None:
        for handle, event in pairs:
            assert handle not in gone, "an event of a cancelled request"
            assert not is_over(handle), "an event after the last one"
            events[handle].append(event)
        if all(map(is_over, events.keys() - gone)):
            end.set()

    handles = scheduler.submit([(ask.rows, ask.params) for ask in mix], on_events)
    gone = set[ScheduledRequest]()
    for handle in handles:
        assert isinstance(handle, ScheduledRequest)
        events[handle] = []
    for turn in range(6):
        for i in [i for i, when in leaving.items() if when == turn]:
            handle = handles[i]
            assert isinstance(handle, ScheduledRequest)
            if not is_over(handle):
                scheduler.cancel(handle)
                gone.add(handle)
        await asyncio.sleep(0)
    on_events([])
    await asyncio.wait_for(end.wait(), 30)
    for ask, before in zip(mix, inputs, strict=True):
        np.testing.assert_array_equal(ask.rows, before)
    return [[] if handle in gone else seen for handle, seen in events.items()]


@given(
    mixes,
    st.integers(1, 8),
    st.sampled_from([None, (1, 2, 4, 8), (3, 8), (8,)]),
    st.sampled_from([None, None, None, 3]),
    st.lists(st.integers(0, 6), max_size=2),
)
def test_every_row_is_what_f_gives_row_by_row(
    mix: list[Ask],
    max_batch_rows: int,
    buckets: tuple[int, ...] | None,
    memory: int | None,
    losses: Collection[int],
) -> None:
    """Streamed, recorded, masked, with a tolerance, one step and many.

    Devices fail on rows, lack memory, and are lost.
    """
    if buckets is not None and memory is not None:
        memory = max(memory, buckets[0])  # a device on which nothing at all fits is another test
    devices = [FakeModel(SHAPE, f, buckets, poison=raises, memory_rows=memory)]
    devices += [FakeModel(SHAPE, f, buckets, poison=raises, lost_in=lost_in) for lost_in in losses]

    async def main(scheduler: Scheduler) -> None:
        for ask, events in zip(mix, await told(scheduler, mix, {}), strict=True):
            check(ask, events)
        assert scheduler.rows_queued == rows_open(scheduler) == 0
        assert scheduler.healthy

    play(main, *devices, max_batch_rows=max_batch_rows, queue_rows=1000)
    sizes = {size for device in devices for size in device.sizes}
    assert max(sizes) <= (max_batch_rows if buckets is None else buckets[-1])
    assert buckets is None or sizes <= set(buckets)


@given(asks())
def test_images_of_one_tile_have_the_steps_of_rows(ask: Ask) -> None:
    """Differences of images are summed in another order."""
    keep = ask.params.keep_mask
    images = [
        (x, Tiling((2, 2), (2, 2), overlap=0), None if keep is None else keep[i])
        for i, x in enumerate(ask.rows)
    ]

    async def at_once(_: str, job: Callable[[], Any]) -> Any:
        return job()

    async def main(scheduler: Scheduler) -> None:
        events = list[Event]()
        streamed = replace(ask.params, streamed=True)
        run = TiledRun(
            images,
            lambda: streamed,
            scheduler_for=lambda _: scheduler,
            run_codec=at_once,
            on_event=events.append,
        )
        try:
            events.append(await run.run())
        except (ModelFailure, InvalidContent) as exc:
            events.append(exc)
        check(
            replace(ask, params=streamed),
            events,
            lambda value: pytest.approx(value, rel=1e-5, abs=1e-6),
        )

    play(main, FakeModel(SHAPE, f, poison=raises), max_batch_rows=3, max_rows=3)


@given(mixes, st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_cancelled_requests_change_no_other_result(mix: list[Ask], seed: int, devices: int) -> None:
    chance = random.Random(seed)
    leaving = {i: chance.randrange(6) for i in range(len(mix)) if chance.random() < 0.5}

    async def main(scheduler: Scheduler) -> None:
        for ask, events in zip(mix, await told(scheduler, mix, leaving), strict=True):
            if events:
                check(ask, events)
        assert scheduler.rows_queued == rows_open(scheduler) == 0

    play(
        main,
        *[FakeModel(SHAPE, f, poison=raises) for _ in range(devices)],
        max_batch_rows=3,
        queue_rows=1000,
    )


@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 2),
)
def test_a_worker_that_keeps_dying_answers_everybody(
    deaths: list[bool], steps: int, max_batch_rows: int, devices: int
) -> None:
    def deadly(rows: FloatRows) -> FloatRows:
        if any(raises(row) for row in rows):
            raise SystemExit
        return f(rows)

    mix = [plain(1, RAISES if dies else i / 20, steps) for i, dies in enumerate(deaths)]

    async def main(scheduler: Scheduler) -> None:
        for ask, dies, events in zip(mix, deaths, await told(scheduler, mix, {}), strict=True):
            # in a batch with one
            if dies or (any(deaths) and isinstance(events[-1], ModelFailure)):
                assert isinstance(events[-1], ModelFailure)
            else:
                check(ask, events)
        assert scheduler.healthy

    reports = Reports()
    models = [FakeModel(SHAPE, deadly) for _ in range(devices)]
    play(main, *models, max_batch_rows=max_batch_rows, observe=reports)
    assert (sum(report.workers_replaced for report in reports) > 0) == any(deaths)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.none() | st.integers(1, 40)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_no_step_begins_with_a_row_whose_deadline_has_passed(
    plans: list[tuple[int, int, int | None]], max_batch_rows: int
) -> None:
    """Every step advances the clock by one second, so that no timer of the event loop
    interferes.
    """
    clock = Clock()
    seen = list[tuple[float, int]]()

    def tick(rows: FloatRows) -> FloatRows:
        seen.extend((clock.now, int(row.flat[0])) for row in rows)
        clock.now += 1
        return rows

    ends = [math.inf if seconds is None else 100.0 + seconds for _, _, seconds in plans]
    gate = threading.Event()

    async def main(scheduler: Scheduler) -> list[list[Event]]:
        mix = [
            Ask(
                np.full((n, *SHAPE), i, np.float32),
                params(steps, deadline=None if seconds is None else ends[i]),
            )
            for i, (n, steps, seconds) in enumerate(plans)
        ]
        asyncio.get_running_loop().call_soon(gate.set)
        return await told(scheduler, mix, {})

    model = FakeModel(SHAPE, tick, gate=gate)
    outcomes = play(main, model, max_batch_rows=max_batch_rows, queue_rows=1000, clock=clock)
    steps_run = [[now for now, which in seen if which == i] for i in range(len(plans))]
    for (n, steps, _), (outcome,), end, ran in zip(plans, outcomes, ends, steps_run, strict=True):
        assert all(now < end for now in ran)
        assert isinstance(outcome, Result | DeadlineExceeded)
        assert len(ran) == n * steps or (
            isinstance(outcome, DeadlineExceeded) and len(ran) < n * steps
        )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 5, 7)])
@given(n=st.integers(2, 24), seed=st.integers(0, 1000))
def test_a_change_does_not_depend_on_the_batch(
    shape: tuple[int, int, int], n: int, seed: int
) -> None:
    y, x = np.random.default_rng(seed).standard_normal((2, n, *shape), np.float32)
    together = mean_changes(y, x)
    for i in range(n):
        assert together[i] == mean_changes(y[i : i + 1], x[i : i + 1])[0]
        assert together[i] == pytest.approx(gap(y[i], x[i]), rel=1e-12)
