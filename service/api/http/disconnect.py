"""Cancel the work of a request when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")

_GRACE_S: Final = 0.25  # most requests finish within this time, even under load, and need no watcher task


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T], *, grace_s: float = _GRACE_S) -> T:
    """Run ``work`` in the current task, and cancel it when the client disconnects.

    Call it after the body was read: it consumes every further message of ``receive``.

    Args:
        receive: the request's ASGI channel.
        work: what the request computes.
        grace_s: seconds before a watcher task starts; a disconnect before that is noticed at its end.

    Returns:
        The result of ``work``.

    Raises:
        ClientDisconnect: the client disconnected first; ``work`` is cancelled.
        Exception: ``receive`` raised it; ``work`` is cancelled.
    """
    watcher = _DisconnectWatcher(receive)
    timer = asyncio.get_running_loop().call_later(grace_s, watcher.start)
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.cancelled_by_disconnect():
            raise watcher.failure or ClientDisconnect() from None
        raise  # somebody else cancels the task, for example the server when it shuts down
    finally:
        timer.cancel()
        watcher.stop()


class _DisconnectWatcher:
    """Cancels the task that created it when the client disconnects."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._cancel_requests = self._task.cancelling() if self._task else 0  # requests made before this watcher
        self._watcher: asyncio.Task[None] | None = None
        self._has_cancelled = False
        self.failure: Exception | None = None

    def start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as exc:  # after a failure of the channel nobody can receive the response
            self.failure = exc
        if self._task is not None:
            self._has_cancelled = True
            self._task.cancel()

    def cancelled_by_disconnect(self) -> bool:
        """Whether this watcher alone cancelled the task; a cancellation by others must reach them."""
        # `Task.cancelling` counts the requests. One of them is the watcher's.
        return self._has_cancelled and self._task is not None and self._task.cancelling() - 1 <= self._cancel_requests

    def stop(self) -> None:
        if self._has_cancelled and self._task is not None:
            self._task.uncancel()  # take back the watcher's own request, as `asyncio.timeout` does
        elif self._watcher is not None:
            self._watcher.cancel()
        # The task holds its exception, the exception its frames, and they hold this object: break the cycle.
        self._watcher = None
