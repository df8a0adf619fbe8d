"""Tiles of an image as requests of the scheduler: what happens between the first and the last of them."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.domain.errors import DeadlineExceeded, DeadlineUnreachable, IgnError, QueueFull
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams
from service.domain.tiles import Tiling
from service.scheduling.scheduler import Scheduler, SubmittedRun
from service.scheduling.tiled import TiledRun
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import params, release, submitted, until_running

IMAGE = np.arange(20 * 8, dtype=np.float32).reshape(1, 20, 8)
TILING = Tiling((20, 8), (8, 8), overlap=0)


async def in_thread(_: str, job: Callable[[Any], Any]) -> Any:
    return await asyncio.to_thread(job, None)


def tiled(scheduler: Scheduler) -> TiledRun:
    return TiledRun([(IMAGE, TILING, None)], params, scheduler_for=lambda _: scheduler, run_codec=in_thread)


class Rejecting(Scheduler):
    """Rejects the requests with these numbers; it keeps how many rows each said would follow."""

    errors: dict[int, IgnError]
    later: list[int]

    def start_run(self, rows: FloatRows, params: SchedulingParams) -> SubmittedRun:
        self.later.append(params.later_rows)
        if error := self.errors.pop(len(self.later), None):
            raise error
        return super().start_run(rows, params)


def played(errors: dict[int, IgnError], model: FakeModel | None = None) -> tuple[Result, list[int]]:
    async def main() -> tuple[Result, list[int]]:
        scheduler = Rejecting(model or FakeModel((1, 8, 8)), max_batch_rows=1, queue_rows=10, max_rows=10)
        scheduler.errors, scheduler.later = errors, []
        scheduler.start()
        try:
            return await tiled(scheduler).run(), scheduler.later
        finally:
            scheduler.close()

    return asyncio.run(main())


def test_every_request_says_how_many_rows_follow() -> None:
    result, later = played({})
    np.testing.assert_allclose(result.rows[0], IMAGE / 2, rtol=1e-6)
    assert len(later) == TILING.count
    assert later[0] == TILING.count - 1
    assert later[-1] <= 1  # another one may still run
    assert later == sorted(later, reverse=True)


def test_what_follows_is_counted_in_tiles_of_the_size_that_waits() -> None:
    class Both:
        batch_rows, later = 1, list[tuple[int, int]]()

        def start_run(self, rows: FloatRows, params: SchedulingParams) -> Any:
            self.later.append((rows.shape[-1], params.later_rows))
            result = asyncio.get_running_loop().create_future()
            result.set_result(SimpleNamespace(rows=rows / 2, queue_s=0.0))
            return SimpleNamespace(result=lambda: result)

    both: Any = Both()
    images = [(IMAGE[:, :3, :4], Tiling((3, 4), (4, 4), overlap=4), None), (IMAGE, TILING, None)]
    result = asyncio.run(TiledRun(images, params, scheduler_for=lambda _: both, run_codec=in_thread).run())
    for row, (image, *_) in zip(result.rows, images, strict=True):
        np.testing.assert_allclose(row, image / 2, rtol=1e-6)
    assert both.later[0] == (4, 4 * TILING.count)
    assert [side for side, _ in both.later] == [4] + [8] * TILING.count


def test_a_full_queue_rejects_the_first_tile_and_delays_the_others() -> None:
    with pytest.raises(QueueFull):
        played({1: QueueFull("full", retry_after=1.0)})
    result, later = played({3: QueueFull("full", retry_after=1.0)})  # two are open at a time
    np.testing.assert_allclose(result.rows[0], IMAGE / 2, rtol=1e-6)
    assert len(later) == TILING.count + 1


@pytest.mark.parametrize(("number", "kind"), [(1, DeadlineUnreachable), (3, DeadlineExceeded)])
def test_a_deadline_that_passes_between_tiles_is_no_wish_that_was_impossible(number: int, kind: type[IgnError]) -> None:
    with pytest.raises(kind):
        played({number: DeadlineUnreachable("passed")})


def test_a_run_ends_when_all_images_have_converged() -> None:
    """However many steps are left: going through them would hold the event loop up for minutes."""

    async def main() -> Result:
        scheduler = Scheduler(FakeModel((1, 8, 8)), max_batch_rows=1, queue_rows=10, max_rows=10)
        scheduler.start()
        try:
            run = TiledRun(
                [(IMAGE, TILING, None)],
                lambda: params(10**9, tolerance=1e9),
                scheduler_for=lambda _: scheduler,
                run_codec=in_thread,
            )
            return await run.run()
        finally:
            scheduler.close()

    result = asyncio.run(main())
    assert (result.steps.tolist(), result.converged.tolist()) == ([1], [True])


def test_a_cancelled_run_leaves_no_row_behind() -> None:
    async def main() -> None:
        model = FakeModel((1, 8, 8), gate=threading.Event())
        scheduler = Scheduler(model, max_batch_rows=1, queue_rows=10, max_rows=10)
        scheduler.start()
        running = asyncio.create_task(tiled(scheduler).run())
        await until_running(model)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        release(model)
        assert running.cancelled()
        other = await submitted(scheduler, np.zeros((1, 1, 8, 8), np.float32), params())
        assert len(other.rows) == 1
        assert scheduler.rows_queued == 0
        scheduler.close()

    asyncio.run(main())
