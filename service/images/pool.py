"""Run codec jobs in a bounded thread pool, because a large one would block the event loop."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Observe = Callable[[str, float], None]
"""Called after every job with its operation and its duration in seconds."""


class CodecPool:
    """Runs jobs in ``threads`` ≥ 1 threads; ``observe`` is called after every job, in its thread."""

    # The number of threads also limits the memory, because each thread decodes one image at a time. The threads are
    # daemons: `concurrent.futures` joins its threads when the interpreter exits, so one damaged image could keep a
    # stopped process alive for as long as its decoder runs.
    def __init__(self, threads: int, observe: Observe) -> None:
        self.threads = threads
        self._observe = observe
        self._queue: queue.SimpleQueue[_PoolJob | None] = queue.SimpleQueue()
        self._started = self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet; those whose request has ended count until a thread drops them."""
        return self._queue.qsize()

    async def run(self, operation: str, job: Callable[[], T]) -> T:
        """Run ``job`` and return its result; ``operation`` (`decode` or `encode`) is for ``observe``.

        If the call is cancelled before the job starts, the job is dropped. If it is cancelled later, the job runs on
        and its result is dropped; a long job has to ask by itself whether somebody still waits for it.
        """
        if self._closed:
            raise RuntimeError("the codec pool is closed")
        if not self._started:
            self._started = True
            for number in range(self.threads):
                threading.Thread(target=self._work, name=f"codec_{number}", daemon=True).start()
        loop = asyncio.get_running_loop()
        waiting = _PoolJob(operation, job, loop, loop.create_future())
        del job  # a cancelled future in the queue holds its exception, and that this frame
        self._queue.put(waiting)
        try:
            result: T = await waiting.done
            return result
        finally:
            waiting.job = None  # a job that has not started frees what it holds, such as the body of its request
            del waiting  # its exception holds this frame: break the cycle

    def close(self) -> None:
        """Cancel the jobs that have not started, and let the threads end; call it on the event loop of the jobs."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while waiting := self._queue.get_nowait():
                waiting.done.cancel()
        for _ in range(self.threads):
            self._queue.put(None)

    def _work(self) -> None:
        while waiting := self._queue.get():
            waiting.run(self._observe)
            del waiting  # `get` blocks, and meanwhile the last job would hold its image


@dataclass(slots=True, eq=False)
class _PoolJob:
    operation: str
    job: Callable[[], Any] | None  # None: its caller has gone
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]

    def run(self, observe: Observe) -> None:
        if (job := self.job) is None:
            return
        result, failure, began = None, None, time.perf_counter()
        try:
            try:
                result = job()
            finally:
                observe(self.operation, time.perf_counter() - began)
        except BaseException as exc:  # the thread must survive every job
            failure = exc
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self.loop.call_soon_threadsafe(self._finish, result, failure)
        del self, failure  # the exception holds this frame: break the cycle

    def _finish(self, result: Any, failure: BaseException | None) -> None:
        if self.done.done():  # the caller cancelled it
            return
        if failure is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(failure)
