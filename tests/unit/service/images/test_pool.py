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

    def hold() -> bool:
        began.wait(10)
        return free.wait(10)

    jobs = [asyncio.create_task(pool.run("hold", hold)) for _ in range(pool.threads)]
    await asyncio.to_thread(began.wait, 10)
    return jobs


def test_pool_jobs_run_in_threads_and_are_observed() -> None:
    seen: list[tuple[str, bool]] = []

    async def main() -> None:
        pool = CodecPool(2, lambda operation, seconds: seen.append((operation, 0 <= seconds < 10)))
        assert await pool.run("decode", threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await pool.run("encode", lambda: 1 // 0)
        assert sorted(await asyncio.gather(*(pool.run("decode", partial(abs, i)) for i in range(9)))) == list(range(9))
        pool.close()
        with pytest.raises(RuntimeError):
            await pool.run("decode", int)

    asyncio.run(main())
    assert seen == [("decode", True), ("encode", True)] + [("decode", True)] * 9


def test_a_pool_job_nobody_waits_for_never_starts_and_holds_nothing() -> None:
    async def main() -> None:
        pool, free, ran = CodecPool(2, lambda *_: None), threading.Event(), threading.Event()
        holding = await occupied(pool, free)
        assert pool.waiting == 0
        body = Body()
        seen = weakref.ref(body)
        gone = asyncio.create_task(pool.run("decode", partial(lambda _: ran.set(), body)))
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
        assert await pool.run("decode", lambda: 1) == 1
        assert not ran.is_set()
        assert pool.waiting == 0
        free.clear()
        holding = await occupied(pool, free)
        waiting = asyncio.create_task(pool.run("decode", int))
        await asyncio.sleep(0)
        pool.close()  # cancels what waits and finishes what runs
        with pytest.raises(asyncio.CancelledError):
            await waiting
        free.set()
        assert await asyncio.gather(*holding) == [True, True]

    asyncio.run(main())


def test_a_failure_of_a_pool_job_leaves_nothing_to_the_garbage_collector() -> None:
    def fail(body: Body) -> None:
        raise ValueError

    async def main() -> None:
        pool, body = CodecPool(1, lambda *_: None), Body()
        seen = weakref.ref(body)
        with contextlib.suppress(ValueError):
            await pool.run("decode", partial(fail, body))
        del body
        await pool.run("decode", int)  # the thread has left the job before
        assert seen() is None
        pool.close()

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


class Body:
    """What a job holds."""
