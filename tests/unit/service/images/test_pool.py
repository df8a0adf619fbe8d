"""Small jobs on the event loop: in a row, but never so many that others wait for long."""

import asyncio
import contextlib
import gc
import time
import weakref
from functools import partial

import pytest

from service.images.pool import InlineRunner


def test_jobs_of_one_turn_run_in_a_row() -> None:
    heard: list[str] = []

    async def ask(together: InlineRunner, name: str) -> str:
        def job() -> str:
            heard.append(f"{name} runs")
            return name

        heard.append(f"{name} asks")
        answer = await together.run(job)
        heard.append(f"{name} goes on")
        return answer

    async def main() -> None:
        together = InlineRunner()
        assert await asyncio.gather(*(ask(together, name) for name in "ab")) == ["a", "b"]

    asyncio.run(main())
    assert heard == ["a asks", "b asks", "a runs", "b runs", "a goes on", "b goes on"]


def test_a_failure_is_that_of_its_job_alone() -> None:
    async def main() -> None:
        together = InlineRunner()
        bad, good = asyncio.create_task(together.run(lambda: 1 // 0)), asyncio.create_task(together.run(lambda: 1))
        with pytest.raises(ZeroDivisionError):
            await bad
        assert await good == 1

    asyncio.run(main())


def test_who_has_left_costs_nothing() -> None:
    ran: list[str] = []

    async def main() -> None:
        together = InlineRunner()
        gone = asyncio.create_task(together.run(lambda: ran.append("gone")))
        stays = asyncio.create_task(together.run(lambda: ran.append("stays")))
        asyncio.get_running_loop().call_soon(gone.cancel)
        await stays
        assert gone.cancelled()

    asyncio.run(main())
    assert ran == ["stays"]


def test_others_get_a_turn_between_long_jobs() -> None:
    heard: list[str] = []

    def long() -> None:
        heard.append("long")
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass

    async def main() -> None:
        together = InlineRunner()
        jobs = [asyncio.create_task(together.run(long)) for _ in range(3)]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(heard.append, "other")
        await asyncio.gather(*jobs)

    asyncio.run(main())
    assert heard == ["long", "other", "long", "long"]


def test_a_failure_leaves_nothing_to_the_garbage_collector() -> None:
    class Body:
        pass

    def fail(body: Body) -> None:
        raise ValueError

    async def main() -> None:
        together, body = InlineRunner(), Body()
        seen = weakref.ref(body)
        with contextlib.suppress(ValueError):
            await together.run(partial(fail, body))
        del body
        await asyncio.sleep(0)  # the turn that brought the failure ends
        assert seen() is None

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
