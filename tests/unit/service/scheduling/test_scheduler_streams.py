"""Streams: recorded steps, last steps and progress, as events."""

import asyncio
import itertools
import threading

import numpy as np

from service.domain.latents import FloatRows
from service.domain.tasks import Result, StepOutput, StreamProgress
from service.scheduling.request import Event, ScheduledRequest
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import Clock, collect, idle, marked, params, play, release, serving, streamed


def test_a_stream_gives_every_recorded_step_and_every_last_step_in_order() -> None:
    async def main(scheduler: Scheduler) -> list[Event]:
        return await collect(streamed(scheduler, marked(16, 1), params(4, tolerance=0.75, record=(0, 2), score=True)))

    *events, result = play(main, FakeModel())
    steps = [event for event in events if isinstance(event, StepOutput)]
    assert [s.step for s in steps if s.index == 0] == [0, 2, 4]
    assert [s.step for s in steps if s.index == 1] == [0, 1]
    assert [s.change for s in steps if s.index == 0] == [None, 4.0, 1.0]
    assert [s.row.flat[0] for s in steps if s.index == 1] == [1.0, 0.5]
    assert all(isinstance(event, StepOutput | StreamProgress) for event in events)
    assert isinstance(result, Result)
    assert [[s.step for s in path] for path in result.trajectory] == [[0, 2], [0]]


def test_the_prepared_input_is_emitted_before_the_first_step_ends() -> None:
    model = FakeModel(gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        stream = streamed(scheduler, marked(16), params(2, record=(0,)))
        first = await asyncio.wait_for(anext(stream), 10)
        assert isinstance(first, StepOutput)
        assert (first.step, float(first.row.flat[0])) == (0, 16.0)
        release(model)
        assert isinstance((await collect(stream))[-1], Result)

    play(main, model)


def test_progress_comes_at_least_once_a_second() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 0.3
        return rows

    async def main(scheduler: Scheduler) -> list[Event]:
        return await collect(streamed(scheduler, marked(1, 2), params(40)))

    progress = [
        event for event in play(main, FakeModel(function=tick), clock=clock) if isinstance(event, StreamProgress)
    ]
    done = [event.steps_done for event in progress]
    assert done == sorted(done)
    assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(done))
    assert done[0] <= 3
    assert done[-1] >= 37
    assert {(event.steps, event.rows, event.rows_done) for event in progress[:-1]} == {(40, 2, 0)}


def test_progress_is_that_of_the_slowest_row() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1.1
        return rows * np.float32(0.5)

    async def main(scheduler: Scheduler) -> list[Event]:
        return await collect(streamed(scheduler, marked(16, 1), params(9, tolerance=0.75)))

    events = play(main, FakeModel(function=tick), clock=clock, max_batch_rows=1)
    progress = [event for event in events if isinstance(event, StreamProgress)]
    # One row a step: the first is a step ahead until the second is done, after one.
    assert [(event.steps_done, event.rows_done) for event in progress] == [(0, 0), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert {(event.steps, event.rows) for event in progress} == {(9, 2)}


def test_events_of_one_turn_are_delivered_together_and_in_order() -> None:
    """Two workers end their steps while the event loop does something else."""
    models = [FakeModel(gate=threading.Event()) for _ in range(2)]
    calls = list[list[tuple[ScheduledRequest, Event]]]()

    async def main() -> None:
        with serving(*models) as scheduler:
            await idle(scheduler, 2)
            requests = [(marked(1), params()), (marked(2), params(2, record=(1,)))]
            first, second = scheduler.submit(requests, calls.append)
            await asyncio.sleep(0)
            for model in models:
                assert model.entered.wait(10)
                release(model)
            while len(scheduler._pool.sleepers) < 2:
                threading.Event().wait(0.001)  # the event loop is busy
            await asyncio.sleep(0)
            (events,) = calls
            assert len(events) == 2
            assert {request for request, _ in events} == {first, second}
            assert all(isinstance(event, Result) for _, event in events)  # no steps: they are not streamed

    asyncio.run(main())
