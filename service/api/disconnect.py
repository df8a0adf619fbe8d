"""Cancel the work of a request when its client disconnects."""

import asyncio
from types import TracebackType
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

_GRACE_S: Final = 0.25  # most requests end within this time, even under load, and need no task that watches them


class DisconnectSweep:
    """Watches the requests that last longer than a quarter of a second. Belongs to one event loop.

    ASGI reports a disconnect only to a task that waits in `receive`. A request enters a `watch` block, which costs
    next to nothing; one timer for all blocks starts a task for each block that has become old.
    """

    def __init__(self) -> None:
        self._young: dict[watch, float] = {}  # in the order of their beginning
        self._timer: asyncio.TimerHandle | None = None

    def add(self, block: "watch", loop: asyncio.AbstractEventLoop) -> None:
        """Start ``block`` when it has become old."""
        self._young[block] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_GRACE_S, self._sweep, loop)

    def remove(self, block: "watch") -> None:
        """Forget a block that has ended."""
        self._young.pop(block, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        latest = loop.time() - _GRACE_S
        for block in [block for block, since in self._young.items() if since <= latest]:
            del self._young[block]
            block.start(loop)
        self._timer = loop.call_later(_GRACE_S, self._sweep, loop) if self._young else None


class watch:  # noqa: N801 - a context manager, as `asyncio.timeout`
    """A block that ends with `ClientDisconnect` when the client disconnects.

    Use it after the body was read: it consumes every further message of ``receive``. A cancellation by somebody else
    stays a `CancelledError`. If ``receive`` raises, so does the block.
    """

    __slots__ = ("_cancel_requests", "_failure", "_receive", "_sweep", "_task", "_watching")

    def __init__(self, sweep: DisconnectSweep, receive: Receive) -> None:
        self._sweep, self._receive = sweep, receive
        self._task: asyncio.Task[object] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None  # once this block has cancelled its task

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        self._cancel_requests = task.cancelling() if task else 0  # those before this block
        self._sweep.add(self, loop)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        task, self._task = self._task, None  # breaks the cycles of this object and its tasks
        if self._watching is None:
            self._sweep.remove(self)
            return
        watching, self._watching = self._watching, None
        if self._failure is None or task is None:
            watching.cancel()
        # `uncancel` takes back this block's request, as `asyncio.timeout` does. Those of others must reach them.
        elif task.uncancel() <= self._cancel_requests and isinstance(exc, asyncio.CancelledError):
            raise self._failure from None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch."""
        self._watching = loop.create_task(self._wait())

    async def _wait(self) -> None:
        failure: Exception = ClientDisconnect()
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as exc:  # after a failure of the channel nobody can receive the response
            failure = exc
        if self._task is not None:
            self._failure = failure
            self._task.cancel()
