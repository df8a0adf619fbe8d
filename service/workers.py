"""A bounded pool of threads for pictures, so that decoding and encoding never hold up the event loop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
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
