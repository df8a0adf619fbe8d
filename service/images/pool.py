"""Where pictures become rows, and rows pictures.

Large ones in a bounded pool of threads, so that they never hold up the event loop; small ones on the loop, in less time
than a thread takes to wake.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")
_MAX_BLOCKING_S: Final = 0.001  # for which small jobs hold up the event loop, and no longer than the last of them takes
Observe = Callable[[str, float], None]
"""Told of every job: its operation, and the seconds it ran."""


class CodecPool:
    """Runs jobs in at most ``threads`` threads.

    The bound is one of memory too: each thread holds one picture at a time.

    Args:
        threads: ≥ 1.
        observe: called after every job, from its thread.
    """

    def __init__(self, threads: int, observe: Observe) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")
        self._observe = observe

    async def run(self, operation: str, job: Callable[[], T]) -> T:
        """Run ``job`` and return what it returns; cancelling the call drops a job that has not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, operation, job)

    def close(self) -> None:
        """Drop the jobs that have not begun and let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, operation: str, job: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return job()
        finally:
            self._observe(operation, time.perf_counter() - start)


class InlineRunner:
    """Runs small jobs on the event loop, and those that are asked for in one turn of it in a row.

    Between all that a request takes, a codec's code and tables are no longer in a core's caches when the next picture
    comes, and it takes three times as long as in a row. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()

    async def run(self, job: Callable[[], T]) -> T:
        """Run ``job`` and return what it returns; cancelling the call drops a job that has not begun."""
        loop = asyncio.get_running_loop()
        if not self._jobs:
            loop.call_soon(self._run_jobs)
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.append((done, job))
        try:
            return await done
        finally:
            del done  # it holds the job's exception, whose frames hold this one

    def _run_jobs(self) -> None:
        until = time.perf_counter() + _MAX_BLOCKING_S
        while self._jobs:
            _set_result(*self._jobs.popleft())
            if self._jobs and time.perf_counter() >= until:
                asyncio.get_running_loop().call_soon(self._run_jobs)
                break


def _set_result(done: asyncio.Future[T], job: Callable[[], T]) -> None:
    if done.done():  # its caller has left
        return
    try:
        done.set_result(job())
    except Exception as exc:
        done.set_exception(exc)
    finally:
        del done  # likewise
