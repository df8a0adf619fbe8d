"""A scheduler over fake models, and helpers for its tests."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from service.domain.errors import IgnError
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.scheduling.report import Report
from service.scheduling.request import Counters, Event, ScheduledRequest
from service.scheduling.scheduler import Scheduler
from tests.helpers.connection import PATIENCE_S
from tests.helpers.fakes import FakeModel
from tests.helpers.timed_loop import run_timed

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Reports(list[Report]):
    """What a scheduler has reported; to be called with each report."""

    def __call__(self, report: Report) -> None:
        self.append(report)

    def all(self, name: str) -> list[Any]:
        """What all reports have in the list of this name."""
        return [each for report in self for each in getattr(report, name)]

    def ended(self) -> list[tuple[int, str]]:
        """Rows and outcome of the requests that have ended."""
        return sorted((each.rows, each.outcome) for each in self.all("finished"))


class RecordingFunction:
    """f(x) = x, recording the rows of every call by the value of their first pixel."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, rows: FloatRows) -> FloatRows:
        self.batches.append([int(row.flat[0]) for row in rows])
        return rows


async def streamed(
    scheduler: Scheduler, rows: FloatRows, params: SchedulingParams
) -> AsyncGenerator[Event, None]:
    """The events of a streamed request; closing the generator cancels it."""
    events = asyncio.Queue[Event]()

    def on_events(pairs: list[tuple[ScheduledRequest, Event]]) -> None:
        for _, event in pairs:
            events.put_nowait(event)

    (handle,) = scheduler.submit([(rows, replace(params, streamed=True))], on_events)
    if isinstance(handle, IgnError):
        raise handle
    try:
        event = await events.get()
        while not isinstance(event, Result | IgnError):
            yield event
            event = await events.get()
        if isinstance(event, IgnError):
            raise event
        yield event
    finally:
        scheduler.cancel(handle)


@contextlib.contextmanager
def serving(
    *models: FakeModel, max_batch_rows: int = 8, queue_rows: int = 100, **options: Any
) -> Iterator[Scheduler]:
    """A scheduler that runs; ``options`` of `Scheduler`."""
    scheduler = Scheduler(*models, max_batch_rows=max_batch_rows, queue_rows=queue_rows, **options)
    try:
        yield scheduler
    finally:
        for model in models:
            if model.gate is not None:
                model.gate.set()
        scheduler.close()
        assert not scheduler.healthy
        # Of rows, steps and batches.
        assert scheduler._admission.total == Counters()


def play(
    main: Callable[[Scheduler], Awaitable[T]],
    *models: FakeModel,
    loop_clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> T:
    """Run a coroutine function with a scheduler over these models; the event loop has a clock of
    its own.
    """

    async def served() -> T:
        with serving(*models, **options) as scheduler:
            return await main(scheduler)

    return run_timed(served(), loop_clock)


def marked(*values: float) -> FloatRows:
    return np.stack([np.full((1, 4, 4), value, np.float32) for value in values])


def params(
    steps: int = 1,
    *,
    key: str = "",
    deadline: float | None = None,
    tolerance: float | None = None,
    record: tuple[int, ...] = (),
    score: bool = False,
    streamed: bool = False,
) -> SchedulingParams:
    step_params = StepParams(steps=steps, tolerance=tolerance, record=record, score=score)
    return SchedulingParams(step_params=step_params, key=key, deadline=deadline, streamed=streamed)


def scheduled(n: int = 1, steps: int = 1, **options: Any) -> ScheduledRequest:
    """A request of rows of zeros; ``options`` of `params`."""
    rows = np.zeros((n, 1, 1, 1), np.float32)
    return ScheduledRequest(rows, params(steps, **options), arrived=0.0)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def rows_open(scheduler: Scheduler) -> int:
    """Rows admitted and unfinished, as the scheduler counts them. Without any, it counts
    nothing.
    """
    total = scheduler._admission.total
    assert total.rows or total == Counters()
    return total.rows


async def until_running(model: FakeModel) -> None:
    """Wait until a worker is inside the model."""
    assert await asyncio.to_thread(model.entered.wait, PATIENCE_S)


def release(model: FakeModel) -> None:
    """Let model calls end from now on."""
    assert model.gate is not None
    model.gate.set()


async def until_queued(scheduler: Scheduler, *calls: asyncio.Future[Result]) -> None:
    """Wait until the tasks have submitted their rows and the workers have got them."""
    await asyncio.sleep(0)  # the tasks begin
    await asyncio.sleep(0)  # the scheduler hands over what arrived in that turn of the event loop
    assert not any(call.done() for call in calls)
    assert scheduler.rows_queued >= len(calls)
