"""Streams: recorded steps and progress, as events."""

import asyncio
import itertools
import threading

import numpy as np

from service.domain.latents import FloatRows
from service.domain.tasks import Result, StepOutput, StreamProgress
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    Event,
    collect,
    marked,
    params,
    release,
    serving,
    streamed,
)


def test_a_stream_gives_every_recorded_step_and_every_last_step_in_order() -> None:
    async def main() -> None:
        with serving(FakeModel()) as scheduler:
            events = await collect(
                streamed(scheduler, marked(16, 1), params(4, tolerance=0.75, record=(0, 2), score=True))
            )
        steps = [event for event in events if isinstance(event, StepOutput)]
        assert [s.step for s in steps if s.index == 0] == [0, 2, 4]
        assert [s.step for s in steps if s.index == 1] == [0, 1]
        assert [s.change for s in steps if s.index == 0] == [None, 4.0, 1.0]
        assert [s.row.flat[0] for s in steps if s.index == 1] == [1.0, 0.5]
        assert len(events) == len(steps) + 1
        result = events[-1]
        assert isinstance(result, Result)
        assert [[s.step for s in path] for path in result.trajectory] == [[0, 2], [0]]

    asyncio.run(main())


def test_the_prepared_input_is_emitted_before_the_first_step_ends() -> None:
    model = FakeModel(gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            stream = streamed(scheduler, marked(16), params(2, record=(0,)))
            first = await asyncio.wait_for(anext(stream), 10)
            assert isinstance(first, StepOutput)
            assert (first.step, float(first.row.flat[0])) == (0, 16.0)
            release(model)
            assert len(await collect(stream)) == 2

    asyncio.run(main())


def test_progress_comes_at_least_once_a_second() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 0.3
        return rows

    async def main() -> None:
        with serving(FakeModel(function=tick), clock=clock) as scheduler:
            events = await collect(streamed(scheduler, marked(1, 2), params(40)))
            silent = await collect(streamed(scheduler, marked(1, 2), params(40)))
        progress = [event for event in events if isinstance(event, StreamProgress)]
        done = [event.steps_done for event in progress]
        assert done == sorted(done)
        assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(done))
        assert done[0] <= 3
        assert done[-1] >= 37
        assert {(event.steps, event.rows, event.rows_done) for event in progress[:-1]} == {(40, 2, 0)}
        assert not any(isinstance(event, StreamProgress) for event in silent)

    asyncio.run(main())


def test_progress_is_that_of_the_slowest_row() -> None:
    clock = Clock()

    def tick(rows: FloatRows) -> FloatRows:
        clock.now += 1.1
        return rows * np.float32(0.5)

    async def main() -> list[Event]:
        with serving(FakeModel(function=tick), clock=clock, max_batch_rows=1) as scheduler:
            return await collect(streamed(scheduler, marked(16, 1), params(9, tolerance=0.75)))

    progress = [event for event in asyncio.run(main()) if isinstance(event, StreamProgress)]
    # One row a step: the first is a step ahead until the second is done, after one.
    assert [(event.steps_done, event.rows_done) for event in progress] == [(0, 0), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert {(event.steps, event.rows) for event in progress} == {(9, 2)}
