"""Run codec jobs in a bounded thread pool, because a large one would block the event loop."""

import asyncio
import contextlib
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

_M_MMAP_THRESHOLD: Final = -3  # of malloc.h
_LARGE_BLOCK: Final = 1 << 20  # bytes

T = TypeVar("T")
Observe = Callable[[str, float], None]
"""Called after every job with its operation and its duration in seconds."""


class CodecThread:
    """Stands for a thread of the codec pool. Only the pool makes one, and gives it to every job.

    What opens or decodes an image file asks for it, so the type checker refuses to do that on the event loop.
    """

    __slots__ = ()


Job = Callable[[CodecThread], T]


class CodecPool:
    """Runs jobs in ``threads`` ≥ 1 threads, and one more; ``observe`` is called after every job, in its thread.

    The next job is that of the caller with the fewest jobs running, and of those, with the least time spent. At most
    ``threads`` jobs run, but one more for a caller that has none running. So a caller with many large images never
    takes all threads: another one waits for nobody, unless several others wait as well.
    """

    # The number of threads also limits the memory, because each thread decodes one image at a time. The threads are
    # daemons: `concurrent.futures` joins its threads when the interpreter exits, so one damaged image could keep a
    # stopped process alive for as long as its decoder runs. A process without HTTP waits for them instead: the end of
    # the interpreter would abort it if native code ran.
    def __init__(self, threads: int, observe: Observe, *, daemons: bool = True) -> None:
        self.threads, self._are_daemons = threads, daemons
        self._observe = observe
        _return_large_blocks()
        self._callers: dict[str, _Caller] = {}  # those that have a job
        self._running = 0
        self._changed = threading.Condition()
        self._started = self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet; those whose request has ended count until a thread drops them."""
        with self._changed:
            return sum(len(caller.jobs) for caller in self._callers.values())

    async def run(self, operation: str, job: Job[T], key: str = "") -> T:
        """Run ``job`` and return its result; ``operation`` (`decode` or `encode`) is for ``observe``.

        ``key`` is the caller's fairness key. If the call is cancelled before the job starts, the job is dropped. If it
        is cancelled later, the job runs on and its result is dropped; a long job has to ask by itself whether somebody
        still waits for it.
        """
        if self._closed:
            raise RuntimeError("the codec pool is closed")
        if not self._started:
            self._started = True
            for number in range(self.threads + 1):
                threading.Thread(target=self._work, name=f"codec_{number}", daemon=self._are_daemons).start()
        loop = asyncio.get_running_loop()
        waiting = _PoolJob(operation, job, loop, loop.create_future())
        del job  # a cancelled future in the queue holds its exception, and that this frame
        with self._changed:
            if key not in self._callers:
                # As if it had spent as little as any other: it is next, but not for as long as it was away.
                self._callers[key] = _Caller(min((other.spent for other in self._callers.values()), default=0.0))
            self._callers[key].jobs.append(waiting)
            self._changed.notify()
        try:
            result: T = await waiting.done
            return result
        finally:
            waiting.job = None  # a job that has not started frees what it holds, such as the body of its request
            del waiting  # its exception holds this frame: break the cycle

    def close(self) -> None:
        """Cancel the jobs that have not started, and let the threads end; call it on the event loop of the jobs."""
        with self._changed:
            self._closed = True
            for caller in self._callers.values():
                for waiting in caller.jobs:
                    waiting.done.cancel()
                caller.jobs.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            key, waiting = taken
            del taken
            began = time.perf_counter()
            waiting.run(self._observe)
            del waiting  # `_take` blocks, and meanwhile the last job would hold its image
            self._end(key, time.perf_counter() - began)

    def _take(self) -> "tuple[str, _PoolJob] | None":
        """Wait for the next job; None if the pool is closed."""
        with self._changed:
            while not self._closed:
                key = self._next()
                if key is not None:
                    self._running += 1
                    self._callers[key].running += 1
                    return key, self._callers[key].jobs.popleft()
                self._changed.wait()
        return None

    def _next(self) -> str | None:
        waiting = [(each.running, each.spent, key) for key, each in self._callers.items() if each.jobs]
        running, _, key = min(waiting, default=(0, 0.0, None))
        return key if self._running < self.threads or not running else None

    def _end(self, key: str, seconds: float) -> None:
        with self._changed:
            caller = self._callers[key]
            self._running -= 1
            caller.running -= 1
            caller.spent += seconds
            if not (caller.jobs or caller.running):
                del self._callers[key]
            self._changed.notify()


def _return_large_blocks() -> None:
    """Let glibc give large blocks back to the system as soon as they are free.

    By default it keeps, for each thread, what its largest image took, because the threshold grows with what is freed.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


_THREAD: Final = CodecThread()


@dataclass(slots=True, eq=False)
class _Caller:
    spent: float  # seconds of its jobs
    jobs: "deque[_PoolJob]" = field(default_factory=deque)  # that no thread has taken
    running: int = 0


@dataclass(slots=True, eq=False)
class _PoolJob:
    operation: str
    job: Job[Any] | None  # None: its caller has gone
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]

    def run(self, observe: Observe) -> None:
        if (job := self.job) is None:
            return
        result, failure, began = None, None, time.perf_counter()
        try:
            try:
                result = job(_THREAD)
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
