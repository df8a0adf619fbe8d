"""Run codec jobs in a bounded thread pool, because a large one would block the event loop."""

import asyncio
import ctypes
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.domain.accounts import UNLIMITED, Accounts

T = TypeVar("T")
Job = Callable[[], T]


class CodecPool:
    """Runs jobs in ``threads`` ≥ 1 threads, and one more. Belongs to one event loop.

    ``observe`` is called after every job, in its thread, with its operation and its seconds. The
    next job is that of the caller with the fewest jobs running, and of those, with the least time
    spent. At most ``threads`` jobs run, but one more for a caller that has none running. So a
    caller with many large images never takes all threads: another one waits for nobody, unless
    several others wait as well.
    """

    # The number of threads also limits the memory: each thread decodes one image at a time.
    def __init__(self, threads: int, observe: Callable[[str, float], None]) -> None:
        self.threads = threads
        self._observe = observe
        _return_large_blocks()
        self._executor = ThreadPoolExecutor(threads + 1, "codec")
        self._accounts = Accounts(UNLIMITED)  # jobs that run, and seconds of those that ended
        # Jobs that no thread has taken, by caller and by the future that gets the running job.
        self._waiting: dict[str, dict[asyncio.Future[Future[Any]], Callable[[], Any]]] = {}

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Jobs that a thread has taken, also those for whose results nobody waits any more."""
        return self._accounts.total

    async def run(self, operation: str, job: Job[T], key: str = "") -> T:
        """Run ``job`` and return its result; ``operation`` is for ``observe``.

        ``key`` is the caller's fairness key. If the call is cancelled before the job starts, the
        job is dropped. If it is cancelled later, the job runs on and its result is dropped; a long
        job has to ask by itself whether somebody still waits for it. Raises RuntimeError after
        `close`.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Future[T]] = loop.create_future()
        self._waiting.setdefault(key, {})[turn] = partial(self._run, loop, operation, job, key)
        del job  # what is cancelled holds its exception, and that this frame
        try:
            self._start()
            return await _shielded(await turn)
        finally:
            self._withdraw(key, turn)
            del turn  # its exception holds this frame: break the cycle

    def close(self) -> None:
        """Cancel the jobs that have not started, and let the threads end."""
        for jobs in self._waiting.values():
            for turn in jobs:
                turn.cancel()
        self._executor.shutdown(wait=False)

    def _start(self) -> None:
        """Start jobs while there are threads."""
        accounts = self._accounts
        while self._waiting:
            key = accounts.next(self._waiting)
            if accounts.total >= self.threads + (key not in accounts.held):
                return
            turn, job = next(iter(self._waiting[key].items()))
            self._withdraw(key, turn)
            if not turn.cancelled():
                turn.set_result(self._executor.submit(job))
                accounts.take(key, 1)

    def _withdraw(self, key: str, turn: asyncio.Future[Future[Any]]) -> None:
        """Take a job out of those that wait, if it is there."""
        jobs = self._waiting.get(key, {})
        jobs.pop(turn, None)
        if not jobs:
            self._waiting.pop(key, None)

    def _run(self, loop: asyncio.AbstractEventLoop, operation: str, job: Job[T], key: str) -> T:
        began = time.perf_counter()
        try:
            return job()
        finally:
            seconds = time.perf_counter() - began
            self._observe(operation, seconds)
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._end, key, seconds)

    def _end(self, key: str, seconds: float) -> None:
        self._accounts.spent[key] += seconds
        self._accounts.give_back(key, 1)
        self._start()


def _shielded(job: Future[T]) -> asyncio.Future[T]:
    """The result of a job, which runs on if nobody waits for it any more."""
    result = asyncio.wrap_future(job)
    # asyncio logs an exception that nobody has read.
    result.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return asyncio.shield(result)


def _return_large_blocks() -> None:
    """Let glibc give large blocks back to the system as soon as they are free.

    By default it keeps, for each thread, what its largest image took, because the threshold grows
    with what is freed.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD of malloc.h, bytes
