"""Streams: recorded steps, last steps and progress, as events."""

import itertools

import numpy as np

from service.domain.latents import FloatRows
from service.domain.tasks import StreamProgress
from service.scheduling.request import Event
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import Clock, collect, marked, params, play, streamed


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
    seen = [(event.steps_done, event.rows_done) for event in progress]
    assert seen == sorted(seen)
    assert {(0, 0), (4, 1)} <= set(seen) <= {(0, 0), (1, 1), (2, 1), (3, 1), (4, 1)}
    assert {(event.steps, event.rows) for event in progress} == {(9, 2)}
