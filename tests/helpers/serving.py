"""A scheduler over a fake model, and what its tests hold in their hands."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np

from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StepParams, StreamProgress
from service.scheduling.scheduler import Scheduler, SchedulerObserver
from tests.helpers.fakes import FakeModel

Event = StepOutput | StreamProgress | Result


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

    def reduce_max_batch(self, batch_rows: int) -> None:
        self.heard.append(("reduce_max_batch", (batch_rows,)))

    def lost(self) -> None:
        self.heard.append(("lost", ()))

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
    *models: FakeModel,
    max_batch_rows: int = 8,
    queue_rows: int = 100,
    clock: Callable[[], float] | None = None,
    observer: SchedulerObserver | None = None,
    lost: Callable[[], None] = lambda: None,
    least: int = 1,
) -> Iterator[Scheduler]:
    scheduler = Scheduler(
        *models,
        max_batch_rows=max_batch_rows,
        queue_rows=queue_rows,
        observer=observer,
        lost=lost,
        least=least,
        clock=clock or time.monotonic,
    )
    scheduler.start()
    try:
        yield scheduler
    finally:
        for model in models:
            if model.gate is not None:
                model.gate.set()
        scheduler.close()
        assert not scheduler.healthy
        assert scheduler._books.total.rows == scheduler._books.total.work == 0


def marked(*values: float) -> FloatRows:
    return np.stack([np.full((1, 4, 4), value, np.float32) for value in values])


def params(
    steps: int = 1,
    *,
    key: str = "",
    deadline: float | None = None,
    progress: bool = False,
    tolerance: float | None = None,
    record: tuple[int, ...] = (),
    score: bool = False,
) -> SchedulingParams:
    step_params = StepParams(steps=steps, tolerance=tolerance, record=record, score=score)
    return SchedulingParams(step_params=step_params, key=key, deadline=deadline, progress=progress)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def begun(model: FakeModel) -> None:
    """Until the executor is inside the model."""
    assert await asyncio.to_thread(model.entered.wait, 10)


def release(model: FakeModel) -> None:
    """Let passes end from now on."""
    assert model.gate is not None
    model.gate.set()


async def queued(scheduler: Scheduler, *calls: asyncio.Task[Result]) -> None:
    """Until the tasks have put their rows into the queue, and the executor has heard of it."""
    await asyncio.sleep(0)  # they begin
    await asyncio.sleep(0)  # what arrived in that turn of the event loop is handed over
    assert not any(call.done() for call in calls)
    assert scheduler.rows_queued >= len(calls)


def held(scheduler: Scheduler, rows: FloatRows, the_plan: SchedulingParams) -> asyncio.Task[Result]:
    return asyncio.create_task(scheduler.submit(rows, the_plan))
