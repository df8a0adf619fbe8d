import asyncio
import gc
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from service.api.pipeline import DisconnectSweep, watch
from service.domain.errors import UnknownModel

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    with watch(DisconnectSweep(), receive):
        return await work


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def silent() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_work_that_ends_first_is_the_answer_and_leaves_no_task() -> None:
    async def main() -> None:
        async def answer() -> int:
            return 42

        async def fail() -> int:
            raise UnknownModel("no")

        assert await until_disconnect(silent, answer()) == 42
        with pytest.raises(UnknownModel):
            await until_disconnect(silent, fail())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


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


def test_a_watcher_leaves_nothing_to_the_garbage_collector() -> None:
    class Channel:
        def __init__(self) -> None:
            self.asked = asyncio.Event()

        async def receive(self) -> Message:
            self.asked.set()
            return await silent()

    async def main() -> None:
        channel = Channel()
        seen = weakref.ref(channel)
        await until_disconnect(channel.receive, channel.asked.wait())
        await asyncio.sleep(0)  # the watcher ends
        del channel
        assert seen() is None

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
