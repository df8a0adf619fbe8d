"""Codec jobs in threads."""

import asyncio
import threading
from functools import partial

from service.images.pool import CodecPool


def test_a_caller_with_many_jobs_holds_up_nobody() -> None:
    """Its jobs take all threads but one; of two callers that wait, the one that has spent less is
    next.
    """

    async def main() -> None:
        pool = CodecPool(2, lambda *_: None)
        began = asyncio.Queue[str]()
        loop = asyncio.get_running_loop()
        free = {name: threading.Semaphore(0) for name in ("many", "one")}

        def job(name: str) -> None:
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
