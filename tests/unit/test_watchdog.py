"""A slow callback on the event loop of a service fails the test."""

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.helpers import watchdog


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def worker(seconds: float) -> None:
    await asyncio.sleep(0)
    work(seconds)


Begin = Callable[[asyncio.AbstractEventLoop, float], object]
WAYS: dict[str, Begin] = {
    "soon": lambda loop, seconds: loop.call_soon(work, seconds),
    "later": lambda loop, seconds: loop.call_later(0.001, work, seconds),
    "at": lambda loop, seconds: loop.call_at(loop.time(), work, seconds),
    "task": lambda loop, seconds: loop.create_task(worker(seconds)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [watchdog.auto_loop, watchdog.asyncio_loop])
@pytest.mark.parametrize("is_slow", [False, True])
def test_a_callback_that_takes_too_long_is_reported(
    make: Callable[[], asyncio.AbstractEventLoop], way: str, is_slow: bool
) -> None:
    loop = make()
    task = WAYS[way](loop, 1.2 * watchdog.LIMIT_S if is_slow else 0.0)
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    del task
    assert len(watchdog.slow) == is_slow
    watchdog.slow.clear()
