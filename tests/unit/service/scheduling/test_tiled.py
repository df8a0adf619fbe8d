"""Tiles of an image as requests of the scheduler: what happens between the first and the last of
them.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from service.domain.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    IgnError,
    QueueFull,
    WouldMissDeadline,
)
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams
from service.domain.tiles import Tiling
from service.scheduling.scheduler import Scheduler
from service.scheduling.tiled import TiledRun
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import params, play, release, until_running

IMAGE = np.arange(20 * 8, dtype=np.float32).reshape(1, 20, 8)
TILING = Tiling((20, 8), (8, 8), overlap=0)


async def in_thread(_: str, job: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(job)


def tiled(scheduler: Scheduler, asked: SchedulingParams | None = None) -> TiledRun:
    images = [(IMAGE, TILING, None)]
    return TiledRun(
        images, lambda: asked or params(), scheduler_for=lambda _: scheduler, run_codec=in_thread
    )


def played(number: int, error: IgnError) -> tuple[Result, list[int]]:
    """The result, if the scheduler rejects the request with this number, and how many tiles each
    request said to follow.
    """
    later = list[int]()

    async def main(scheduler: Scheduler) -> Result:
        run = scheduler.run

        def run_or_raise(rows: FloatRows, params: SchedulingParams) -> "asyncio.Future[Result]":
            later.append(params.later_rows)
            if len(later) == number:
                raise error
            return run(rows, params)

        with patch.object(scheduler, "run", run_or_raise):
            return await tiled(scheduler).run()

    return play(main, FakeModel((1, 8, 8)), max_batch_rows=1, max_rows=10), later


def test_a_full_queue_rejects_the_first_tile_and_delays_the_others() -> None:
    with pytest.raises(QueueFull):
        played(1, QueueFull("full", retry_after=1.0))
    result, later = played(3, QueueFull("full", retry_after=1.0))  # two are open at a time
    np.testing.assert_allclose(result.rows[0], IMAGE / 2, rtol=1e-6)
    assert later == sorted(later, reverse=True)
    assert later[0] == TILING.count - 1
    assert later[-1] <= 1  # another one may still run


@pytest.mark.parametrize(
    ("number", "error", "kind"),
    [
        (1, DeadlineUnreachable("passed"), DeadlineUnreachable),
        (3, DeadlineUnreachable("passed"), DeadlineExceeded),
        (3, WouldMissDeadline("busy", retry_after=1.0), WouldMissDeadline),
    ],
)
def test_a_deadline_that_passes_between_tiles_is_no_wish_that_was_impossible(
    number: int, error: IgnError, kind: type[IgnError]
) -> None:
    with pytest.raises(kind):
        played(number, error)


def test_a_run_ends_when_all_images_have_converged() -> None:
    """However many steps are left: going through them would hold the event loop up for minutes."""
    many = params(10**9, tolerance=1e9)
    model = FakeModel((1, 8, 8))
    result = play(
        lambda scheduler: tiled(scheduler, many).run(), model, max_batch_rows=1, max_rows=10
    )
    assert (result.steps.tolist(), result.converged.tolist()) == ([1], [True])


def test_a_cancelled_run_leaves_no_row_behind() -> None:
    model = FakeModel((1, 8, 8), gate=threading.Event())

    async def main(scheduler: Scheduler) -> None:
        running = asyncio.create_task(tiled(scheduler).run())
        await until_running(model)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        release(model)
        assert running.cancelled()
        await scheduler.run(np.zeros((1, 1, 8, 8), np.float32), params())
        assert scheduler.rows_queued == 0

    play(main, model, max_batch_rows=1, max_rows=10)
