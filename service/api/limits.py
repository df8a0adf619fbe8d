"""What the service counts to limit its callers: requests in flight, the bytes that they hold, and requests a second."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from service.domain.errors import OverShare, RateLimited, TooLarge, TooManyBytes, TooManyConnections
from service.domain.rate_limit import GCRA, Rate, SharedGCRA
from service.domain.shares import Capacity, Shares

_CREDITS_OF_RESPONSE: Final = 4.0  # at five times the capacity no connection waits after an error
_MANY_WAITING: Final = 512  # more connections wait only if their clients come back at once
CREDITS_OF_SECOND = 250.0  # however slow the model is: up to 4 % of the event loop's time
_MAX_CREDIT: Final = 256.0  # what the responses of one batch of 64 rows allow
_MOST_WAITING: Final = 4096  # turns of one caller; clients that left keep theirs
_PACE_S: Final = 0.02


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

    def hold(self, state: MutableMapping[str, Any], size: int) -> None:
        """Count bytes until their request ends.

        Raises `OverShare` or `TooManyBytes` if there is no room for them now, and `TooLarge` if there never is.

        Bytes of a body count as they arrive. If an announced length counted, a few slow clients could reserve
        everything without sending a byte.
        """
        caller, held = state["caller"], state.get("held_bytes", 0)
        capacity = self.bytes.capacity.size
        if held + size > capacity:
            text = f"the request needs {held + size} bytes; the limit, IGN_MAX_INFLIGHT_BYTES, is {capacity}"
            raise TooLarge(text)
        if not self.bytes.take(caller, size):
            if self.bytes.is_over_share(caller, size):
                raise OverShare("the requests of this caller hold too many bytes (IGN_MAX_INFLIGHT_BYTES)")
            raise TooManyBytes("the requests in flight hold too many bytes")
        state["held_bytes"] = held + size

    def leave(self, epoch: "Epoch", state: Mapping[str, Any]) -> None:
        """Count a request that has ended, and the bytes that `hold` counted for it."""
        self.requests.give_back(state["caller"], 1)
        if held := state.get("held_bytes"):
            self.bytes.give_back(state["caller"], held)
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
    """Lets connections go on after an error, the callers in turn. Belongs to one event loop.

    A client that ignores `Retry-After`, or repeats what is wrong, comes back at once, and an error takes CPU time that
    other requests then lack. So the number of errors follows from that of good responses, not from that of clients.
    Clients that leave come back on new connections: these wait, too, while their caller has connections that wait.

        good response  + 4 credits, or + 1/4 while more than 512 connections wait
        each second    + 250 credits
        error          - 1 credit, or the connection waits for one; - 1 for each KiB that was parsed, at most 64
    """

    def __init__(self, in_flight: InFlightRequests) -> None:
        self._in_flight = in_flight  # while it drains, nobody waits
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by caller, whose turn is next first
        self._count = 0
        self._credit, self._counted_at = _MAX_CREDIT, 0.0
        self._timer: asyncio.TimerHandle | None = None

    def on_response(self, *, has_waited: bool) -> None:
        """Count a response that is no error; the credit of a request that has waited comes back."""
        self._earn((_CREDITS_OF_RESPONSE if self._count <= _MANY_WAITING else _CREDITS_OF_RESPONSE / 16) + has_waited)

    def has_waiting(self, caller: str) -> bool:
        """Whether a connection of this caller waits."""
        return caller in self._waiting

    async def turn(self, caller: str, cost: int = 1) -> None:
        """Wait until a connection of this caller may go on. A ``cost`` above 1 makes all wait longer."""
        loop = asyncio.get_running_loop()
        self._earn_for_time(loop)
        self._credit = max(self._credit - (cost - 1), -_MAX_CREDIT)
        if self._in_flight.draining:
            return
        if not self._waiting and self._credit >= 1:
            self._credit -= 1
            return
        turn = loop.create_future()
        turns = self._waiting.setdefault(caller, deque())
        turns.append(turn)
        self._count += 1
        if len(turns) > _MOST_WAITING:  # most of these clients have left
            self._go_on(turns)
        if self._timer is None:
            self._timer = loop.call_later(_PACE_S, self._tick, loop)
        await turn

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_PACE_S, self._tick, loop) if self._waiting else None
        self._earn_for_time(loop)

    def _earn_for_time(self, loop: asyncio.AbstractEventLoop) -> None:
        seconds, self._counted_at = loop.time() - self._counted_at, loop.time()
        self._earn(seconds * CREDITS_OF_SECOND)

    def _earn(self, credits_: float) -> None:
        self._credit = min(_MAX_CREDIT, self._credit + credits_)
        while self._waiting and (self._credit >= 1 or self._in_flight.draining):
            caller = next(iter(self._waiting))
            turns = self._waiting.pop(caller)
            self._credit -= self._go_on(turns)
            if turns:
                self._waiting[caller] = turns  # behind the others

    def _go_on(self, turns: deque[asyncio.Future[None]]) -> bool:
        turn = turns.popleft()
        self._count -= 1
        if turn.done():  # the server has cancelled the request
            return False
        turn.set_result(None)
        return True


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

    def count(self, state: Mapping[str, Any]) -> None:
        """Count a request with this state, or raise `RateLimited` if it is beyond the rate of its caller."""
        rate: Rate | None = state.get("quota") or self._rate
        if rate is not None:
            wait = self._limiter.wait(state["caller"], rate, self._clock())
            if wait:
                raise RateLimited(f"more than {rate}", retry_after=wait)
