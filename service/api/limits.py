"""What the service counts to limit its callers: requests in flight, the bytes that they hold, and requests a second."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from service.domain.errors import OverShare, RateLimited, TooLarge, TooManyBytes, TooManyConnections
from service.domain.rate_limit import GCRA, Rate, SharedGCRA
from service.domain.shares import Capacity, Shares

ERRORS_OF_SECOND = 250.0  # however slow the model is: up to 4 % of the event loop's time
_MOST_WAIT_S: Final = 0.75  # less than the server waits for connections when it stops


class Holder(Protocol):
    """A request that holds bytes."""

    caller: str
    held_bytes: int


class InFlightRequests:
    """Counts the requests in flight and the bytes that they hold, for each caller. Belongs to one event loop.

    Bytes are those of bodies, of responses and of the arrays that these are made from. `service.server` sets `leaving`
    (requests are still answered) and `draining` (no longer) once each, and waits with `idle`. `ModelRegistry` waits
    with `wait_for_current` before it closes a model.
    """

    def __init__(self, max_requests: Capacity, max_bytes: Capacity) -> None:
        self.leaving = self.draining = False
        self.requests, self.bytes = Shares(max_requests), Shares(max_bytes)
        self._idle = asyncio.Event()
        self._idle.set()
        self._epoch = Epoch()
        self._past_epochs: list[Epoch] = []

    @property
    def count(self) -> int:
        """Requests in flight."""
        return self.requests.total

    def enter(self, caller: str) -> "Epoch":
        """Count a request that begins; pass the return value to `leave`. Raises `OverShare` or `TooManyConnections`."""
        if not self.requests.take(caller, 1):
            if self.requests.is_over_share(caller, 1):
                raise OverShare("too many requests of this caller are in flight (IGN_MAX_INFLIGHT_REQUESTS)")
            raise TooManyConnections("too many requests are in flight")
        epoch = self._epoch
        epoch.requests += 1
        self._idle.clear()
        return epoch

    def hold(self, request: "Holder", size: int) -> None:
        """Count bytes until their request ends.

        Raises `OverShare` or `TooManyBytes` if there is no room for them now, and `TooLarge` if there never is.

        Bytes of a body count as they arrive. If an announced length counted, a few slow clients could reserve
        everything without sending a byte.
        """
        caller, held = request.caller, request.held_bytes
        capacity = self.bytes.capacity.size
        if held + size > capacity:
            text = f"the request needs {held + size} bytes; the limit, IGN_MAX_INFLIGHT_BYTES, is {capacity}"
            raise TooLarge(text)
        if not self.bytes.take(caller, size):
            if self.bytes.is_over_share(caller, size):
                raise OverShare("the requests of this caller hold too many bytes (IGN_MAX_INFLIGHT_BYTES)")
            raise TooManyBytes("the requests in flight hold too many bytes")
        request.held_bytes = held + size

    def leave(self, epoch: "Epoch", caller: str, held_bytes: int) -> None:
        """Count a request that has ended, and the bytes that `hold` counted for it."""
        self.requests.give_back(caller, 1)
        if held_bytes:
            self.bytes.give_back(caller, held_bytes)
        if not self.count:
            self._idle.set()
        epoch.requests -= 1
        if epoch.requests == 0 and epoch is not self._epoch:
            epoch.over.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    async def wait_for_current(self) -> None:
        """Wait until every request in flight at the time of the call has ended; later requests do not count.

        After it returns, no running request uses a model that lost its name before the call.
        """
        self._past_epochs = [epoch for epoch in (*self._past_epochs, self._epoch) if epoch.requests]
        self._epoch = Epoch()
        for epoch in list(self._past_epochs):
            await epoch.over.wait()


class Epoch:
    """The requests that began between two calls of `InFlightRequests.wait_for_current`."""

    def __init__(self) -> None:
        self.requests = 0
        self.over = asyncio.Event()  # set when no request is left and none can be added


class ErrorPace:
    """Lets errors wait for earlier errors of their caller. Belongs to one event loop.

    A client that ignores `Retry-After`, or repeats what is wrong, comes back at once, and an error takes CPU time that
    other requests then lack. So while n callers have errors, each error occupies its caller for n/250 s, at most
    0.75 s, and the next error of that caller is sent afterwards: all callers together have 250 errors a second.

    An error of a caller that is not occupied is sent at once, whatever others do, and what is no error never waits.
    """

    def __init__(self) -> None:
        # By caller, the one with the latest error last. No entry lasts longer than twice the longest wait.
        self._free_at = OrderedDict[str, float]()

    async def wait(self, caller: str) -> None:
        """Wait for the caller's earlier errors, and count one more."""
        now, free_at = asyncio.get_running_loop().time(), self._free_at
        at = min(max(now, free_at.pop(caller, now)), now + _MOST_WAIT_S)
        while free_at and next(iter(free_at.values())) <= now:
            free_at.popitem(last=False)
        free_at[caller] = at + min((len(free_at) + 1) / ERRORS_OF_SECOND, _MOST_WAIT_S)
        await asyncio.sleep(at - now)


class CallerRates:
    """Counts the requests of each caller: in this process alone, unless a limiter is given.

    ``rate`` is that of callers whose API key has no quota; None for no limit.
    """

    def __init__(
        self,
        rate: Rate | None,
        limiter: GCRA | SharedGCRA | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._limiter, self._clock = rate, limiter or GCRA(), clock

    def count(self, caller: str, quota: Rate | None = None) -> None:
        """Count a request, or raise `RateLimited` if it is beyond the ``quota``, or the common rate, of its caller."""
        rate = quota or self._rate
        if rate is not None:
            wait = self._limiter.wait(caller, rate, self._clock())
            if wait:
                raise RateLimited(f"more than {rate}", retry_after=wait)
