"""A slow callback on the event loop of a service fails the test."""

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.helpers import watchdog

WAYS: dict[str, Callable[[asyncio.AbstractEventLoop, float], object]] = {
    "soon": lambda loop, seconds: loop.call_soon(work, seconds),
    "thread": lambda loop, seconds: loop.call_soon_threadsafe(work, seconds),
    "later": lambda loop, seconds: loop.call_later(0.001, work, seconds),
    "at": lambda loop, seconds: loop.call_at(loop.time(), work, seconds),
    "task": lambda loop, seconds: loop.create_task(working(seconds)),
}


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    asyncio.get_running_loop().stop()


async def working(seconds: float) -> None:
    work(seconds)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [watchdog.auto_loop, watchdog.asyncio_loop])
@pytest.mark.parametrize("is_slow", [False, True])
def test_a_callback_that_takes_too_long_is_reported(
    make: Callable[[], asyncio.AbstractEventLoop], way: str, is_slow: bool
) -> None:
    loop = make()
    begun = WAYS[way](loop, 3 * watchdog.LIMIT_S * watchdog.slowness() if is_slow else 0.0)
    loop.run_forever()
    loop.close()
    assert begun
    assert len(watchdog.slow) == is_slow
    watchdog.slow.clear()
