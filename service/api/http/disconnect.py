"""The client is gone: cancel what is done for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")

_UNWATCHED_S: Final = 0.25  # work that is done by then, as most is even under load, costs no watcher


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T], *, unwatched: float = _UNWATCHED_S) -> T:
    """Run ``work``, and cancel it when the client goes away.

    Call it once the body is read: it takes every further message of ``receive``.

    Args:
        receive: the request's ASGI channel.
        work: what is done for the client.
        unwatched: seconds for which nobody looks whether the client is there.

    Raises:
        ClientDisconnect: the client left first; ``work`` has been cancelled.
        Exception: what ``receive`` raised; likewise.
    """
    watch = _Watch(receive)
    timer = asyncio.get_running_loop().call_later(unwatched, watch.start)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.alone():
            raise watch.failure or ClientDisconnect() from None
        raise
    finally:
        timer.cancel()
        watch.end()


class _Watch:
    """Cancels the task that made it when the client goes away."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._watcher: asyncio.Task[None] | None = None
        self._struck = False
        self.failure: Exception | None = None

    def start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as exc:  # a channel that fails is no longer one
            self.failure = exc
        if self._task is not None:
            self._struck = True
            self._task.cancel()

    def alone(self) -> bool:
        """Whether it was this that cancelled the task, and nobody else."""
        return self._struck and self._task is not None and self._task.cancelling() - 1 <= self._cancelling

    def end(self) -> None:
        if self._struck and self._task is not None:
            self._task.uncancel()
        elif self._watcher is not None:
            self._watcher.cancel()
        self._watcher = None  # it holds its exception, whose frames hold this: let go without the garbage collector
