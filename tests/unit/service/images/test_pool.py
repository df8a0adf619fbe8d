"""Codec jobs in threads."""

import asyncio
import threading
from functools import partial

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


def test_a_job_that_nobody_waits_for_never_runs_and_running_ones_end() -> None:
    """tests/contract/test_nothing_outlives.py sees that jobs hold nothing."""

    async def main() -> None:
        pool = CodecPool(2, lambda *_: None)
        free = threading.Event()
        ran = threading.Event()
        holding = await occupied(pool, free)
        gone, waiting = (asyncio.create_task(pool.run("x", lambda _: ran.set())) for _ in range(2))
        await asyncio.sleep(0)
        assert pool.waiting == 2
        gone.cancel()
        await asyncio.sleep(0)
        assert pool.waiting == 1
        pool.close()  # cancels what waits
        await asyncio.wait([gone, waiting])
        free.set()
        assert await asyncio.gather(*holding) == [True, True]
        assert (gone.cancelled(), waiting.cancelled(), ran.is_set()) == (True, True, False)

    asyncio.run(main())


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
