import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from service.api.pipeline import DisconnectSweep, watch

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    with watch(DisconnectSweep(), receive):
        return await work


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def silent() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_disconnect_cancels_the_work_and_waits_for_its_end() -> None:
    async def main() -> None:
        steps: list[str] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                steps.append("cleaned up")

        messages: list[Message] = [{"type": "http.request"}, {"type": "http.disconnect"}]

        async def receive() -> Message:
            await asyncio.sleep(0)
            return messages.pop(0)

        with pytest.raises(ClientDisconnect):
            await until_disconnect(receive, work())
        assert steps == ["cleaned up"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_cancelling_the_caller_cancels_the_work() -> None:
    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        outer = asyncio.create_task(until_disconnect(silent, work()))
        await started.wait()
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert cancelled.is_set()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_broken_channel_is_not_a_disconnect() -> None:
    async def broken() -> Message:
        raise HTTPException(413)

    async def main() -> None:
        with pytest.raises(HTTPException):
            await until_disconnect(broken, asyncio.Event().wait())

    asyncio.run(main())
