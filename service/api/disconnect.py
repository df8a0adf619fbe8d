"""Cancel the work of a request when its client disconnects."""

import asyncio
from types import TracebackType
from typing import Final, Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive

_GRACE_S: Final = 0.25  # most requests end within this time, even under load, and need no task that watches them


class DisconnectWatch:
    """Watches the requests that last longer than a quarter of a second.

    ASGI reports a disconnect only to a task that waits in `receive`. One timer for all requests starts such a task
    for each one that has become old. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._young: dict[_Watcher, float] = {}  # in the order of their beginning
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, receive: Receive) -> "_Watcher":
        """A block that ends with `ClientDisconnect` when the client disconnects.

        Use it after the body was read: it consumes every further message of ``receive``. A cancellation by somebody
        else stays a `CancelledError`. If ``receive`` raises, so does the block.
        """
        return _Watcher(self, receive)

    def add(self, watcher: "_Watcher") -> None:
        """Start ``watcher`` when it has become old."""
        loop = asyncio.get_running_loop()
        self._young[watcher] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_GRACE_S, self._sweep, loop)

    def remove(self, watcher: "_Watcher") -> None:
        """Forget a watcher whose block has ended."""
        self._young.pop(watcher, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        latest = loop.time() - _GRACE_S
        old = [watcher for watcher, since in self._young.items() if since <= latest]
        for watcher in old:
            del self._young[watcher]
            watcher.start()
        self._timer = loop.call_later(_GRACE_S, self._sweep, loop) if self._young else None


class _Watcher:
    """Cancels the task that entered it when the client disconnects."""

    def __init__(self, watch: DisconnectWatch, receive: Receive) -> None:
        self._watch, self._receive = watch, receive
        self._task: asyncio.Task[object] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._has_cancelled = False
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancel_requests = self._task.cancelling() if self._task else 0  # those before this watcher
        self._watch.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._watch.remove(self)
        task, self._task = self._task, None
        watching, self._watching = self._watching, None  # breaks the cycle of this object and its task
        if task is not None and self._has_cancelled:
            # `uncancel` takes back this watcher's request, as `asyncio.timeout` does. Others' must reach them.
            if task.uncancel() <= self._cancel_requests and isinstance(exc, asyncio.CancelledError):
                raise self._failure or ClientDisconnect() from None
        elif watching is not None:
            watching.cancel()

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as exc:  # after a failure of the channel nobody can receive the response
            self._failure = exc
        if self._task is not None:
            self._has_cancelled = True
            self._task.cancel()
