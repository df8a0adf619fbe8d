"""The client is gone: cancel what is done for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")

_GRACE_S: Final = 0.25  # work that is done by then, as most is even under load, costs no watcher


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T], *, grace_s: float = _GRACE_S) -> T:
    """Run ``work``, and cancel it when the client goes away.

    Call it once the body is read: it takes every further message of ``receive``.

    Args:
        receive: the request's ASGI channel.
        work: what is done for the client.
        grace_s: seconds for which nobody looks whether the client is there.

    Raises:
        ClientDisconnect: the client left first; ``work`` has been cancelled.
        Exception: what ``receive`` raised; likewise.
    """
    watch = _DisconnectWatcher(receive)
    timer = asyncio.get_running_loop().call_later(grace_s, watch.start)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.cancelled_by_disconnect():
            raise watch.failure or ClientDisconnect() from None
        raise
    finally:
        timer.cancel()
        watch.end()


class _DisconnectWatcher:
    """Cancels the task that made it when the client goes away."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._cancel_requests = self._task.cancelling() if self._task else 0
        self._watcher: asyncio.Task[None] | None = None
        self._has_cancelled = False
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
            self._has_cancelled = True
            self._task.cancel()

    def cancelled_by_disconnect(self) -> bool:
        """Whether it was this that cancelled the task, and nobody else."""
        return self._has_cancelled and self._task is not None and self._task.cancelling() - 1 <= self._cancel_requests

    def end(self) -> None:
        if self._has_cancelled and self._task is not None:
            self._task.uncancel()
        elif self._watcher is not None:
            self._watcher.cancel()
        self._watcher = None  # it holds its exception, whose frames hold this: let go without the garbage collector
