"""Rows whose only step is that of one batch, alone and among others."""

import asyncio
import logging
import threading
from itertools import pairwise

import numpy as np
import pytest

from service.domain.errors import DeadlineExceeded, ModelFailure
from service.domain.latents import FloatRows
from service.domain.tasks import Result
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import (
    Clock,
    RecordingObserver,
    marked,
    params,
    release,
    rows_open,
    serving,
    submitted,
    until_queued,
    until_running,
)


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [20], [1, 20, 1, 7], [9, 1, 9]])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_every_request_gets_its_own_rows(sizes: list[int], others: int) -> None:
    """Requests that fill a batch, share one, or are divided among several; beside them rows of more steps."""
    model = FakeModel(gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            plug = submitted(scheduler, marked(0), params())
            await until_running(model)
            values = np.arange(1, sum(sizes) + 1)
            rows = [marked(*part) for part in np.split(values, np.cumsum(sizes)[:-1])]
            longer = [submitted(scheduler, marked(-i), params(steps=3, score=True)) for i in range(1, others + 1)]
            calls = [submitted(scheduler, mine, params()) for mine in rows]
            await until_queued(scheduler, *longer, *calls)
            release(model)
            for mine, result in zip(rows, await asyncio.gather(*calls), strict=True):
                np.testing.assert_array_equal(result.rows, mine / 2)
                np.testing.assert_array_equal(result.distance, np.abs(mine / 2).mean((1, 2, 3), np.float64))
                assert result.steps.tolist() == [1] * len(mine)
                assert not result.converged.any()
                assert result.drift is None
            for i, result in enumerate(await asyncio.gather(*longer), 1):
                np.testing.assert_array_equal(result.rows, marked(-i / 8))
                assert result.drift is not None
                assert result.drift.tolist() == [i / 16]
            await plug

    asyncio.run(main())


def test_a_request_whose_caller_has_gone_is_no_failure_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """Its rows may lie in memory that is in use for another request by now."""

    def not_finite_at_13(rows: FloatRows) -> FloatRows:
        return np.where(rows == 13, np.float32(np.nan), rows)

    model = FakeModel(function=not_finite_at_13, gate=threading.Event())

    async def main() -> None:
        with serving(model) as scheduler:
            gone = submitted(scheduler, marked(13), params())
            await until_running(model)
            gone.cancel()
            await asyncio.sleep(0)
            release(model)
            assert (await scheduler.run(marked(4), params())).rows.max() == 4

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_requests_that_end_while_their_batch_runs_do_not_disturb_the_others() -> None:
    model, clock, observer = FakeModel(gate=threading.Event()), Clock(), RecordingObserver()

    async def main() -> None:
        with serving(model, clock=clock, observer=observer) as scheduler:
            calls = [submitted(scheduler, marked(value), params()) for value in (1, 2)]
            gone = submitted(scheduler, marked(3), params())
            late = submitted(scheduler, marked(4), params(deadline=clock.now + 0.05))
            await until_running(model)
            gone.cancel()
            with pytest.raises(DeadlineExceeded):
                await late
            release(model)
            for call, value in zip(calls, (1, 2), strict=True):
                np.testing.assert_array_equal((await call).rows, marked(value / 2))
            assert rows_open(scheduler) == 0

    asyncio.run(main())
    assert model.sizes == [4]
    assert observer.of("cancelled") == [(1,)]
    assert sorted(observer.of("finished")) == [(1, "deadline_exceeded"), (1, "ok"), (1, "ok")]


def test_a_failure_is_about_its_own_request_only() -> None:
    """A batch of whole requests that fails is run again row by row."""
    model = FakeModel(poison=lambda row: bool(row.flat[0] == 13))

    async def main() -> None:
        with serving(model) as scheduler:
            calls = [submitted(scheduler, marked(value, value), params()) for value in (1, 13, 2)]
            first, failed, last = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(failed, ModelFailure)
            for result, value in ((first, 1), (last, 2)):
                assert isinstance(result, Result)
                np.testing.assert_array_equal(result.rows, marked(value / 2, value / 2))
            np.testing.assert_array_equal((await scheduler.run(marked(4), params())).rows, marked(2))

    asyncio.run(main())


def test_short_requests_go_before_long_ones_where_that_is_faster() -> None:
    """Every second step at most, so that the long ones go on."""
    clock = Clock()

    def timed(rows: FloatRows) -> FloatRows:
        clock.now += 0.01 * len(rows)
        return rows

    model = FakeModel(function=timed)

    async def main() -> None:
        with serving(model, clock=clock) as scheduler:
            long = submitted(scheduler, marked(*range(1, 7)), params(steps=10**6))
            await until_running(model)
            for value in range(100):
                result = await scheduler.run(marked(value), params())
                np.testing.assert_array_equal(result.rows, marked(value))
            long.cancel()

    asyncio.run(main())
    assert model.sizes.count(1) > 20  # one that arrives right after such a step shares the next one
    assert not any(size == next_size == 1 for size, next_size in pairwise(model.sizes))
