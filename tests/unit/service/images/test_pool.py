"""Codec jobs in threads."""

import asyncio
import contextlib
import gc
import threading
import weakref
from functools import partial

import pytest

from service.images.pool import CodecPool


async def occupied(pool: CodecPool, free: threading.Event) -> list["asyncio.Task[bool]"]:
    """Jobs that hold every thread until ``free`` is set."""
    began = threading.Barrier(pool.threads + 1)

    def hold(_: object) -> bool:
        began.wait(300)
        return free.wait(300)

    jobs = [asyncio.create_task(pool.run("hold", hold)) for _ in range(pool.threads)]
    await asyncio.to_thread(began.wait, 300)
    return jobs


class Body:
    """What a job holds."""


def fail(body: Body, _: object) -> None:
    raise ValueError


def test_a_pool_job_that_fails_or_that_nobody_waits_for_holds_nothing() -> None:
    async def main() -> None:
        pool = CodecPool(2, lambda *_: None)
        free = threading.Event()
        ran = threading.Event()
        ended = threading.Event()
        ended.set()
        body = Body()
        seen = weakref.ref(body)
        with contextlib.suppress(ValueError):
            await pool.run("decode", partial(fail, body))
        del body
        await asyncio.gather(*await occupied(pool, ended))  # the threads have left the job before
        assert seen() is None
        holding = await occupied(pool, free)
        assert pool.waiting == 0
        body = Body()
        seen = weakref.ref(body)
        gone = asyncio.create_task(pool.run("decode", partial(lambda *_: ran.set(), body)))
        del body
        await asyncio.sleep(0)
        assert pool.waiting == 1
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        del gone
        assert seen() is None  # although no thread has come to it yet
        free.set()
        assert await asyncio.gather(*holding) == [True, True]
        assert await pool.run("decode", lambda _: 1) == 1
        assert not ran.is_set()
        assert pool.waiting == 0
        free.clear()
        holding = await occupied(pool, free)
        waiting = asyncio.create_task(pool.run("decode", str))
        await asyncio.sleep(0)
        pool.close()  # cancels what waits and finishes what runs
        with pytest.raises(asyncio.CancelledError):
            await waiting
        free.set()
        assert await asyncio.gather(*holding) == [True, True]

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_a_caller_with_many_jobs_holds_up_nobody() -> None:
    """Its jobs take all threads but one; of two callers that wait, the one that has spent less is
    next.
    """

    async def main() -> None:
        pool = CodecPool(2, lambda *_: None)
        began = asyncio.Queue[str]()
        loop = asyncio.get_running_loop()
        free = {name: threading.Semaphore(0) for name in ("many", "one")}

        def job(name: str, _: object) -> None:
            loop.call_soon_threadsafe(began.put_nowait, name)
            assert free[name].acquire(timeout=300)

        def start(name: str) -> "asyncio.Task[None]":
            return asyncio.create_task(pool.run("decode", partial(job, name), name))

        jobs = [start("many") for _ in range(6)]
        assert [await began.get() for _ in range(2)] == ["many"] * 2
        jobs += [start("one"), start("one")]
        assert await began.get() == "one"
        assert pool.waiting == 5
        free["one"].release()
        assert await began.get() == "one"
        for semaphore in free.values():
            semaphore.release(10)
        await asyncio.gather(*jobs)
        pool.close()

    asyncio.run(main())
