"""Count the requests in flight, and reject requests beyond a limit."""

import asyncio
from collections.abc import Collection, MutableMapping
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http.problems import send_problem
from service.api.middleware.auth import HEALTH_PATHS
from service.domain.errors import Draining, TooManyBytes, TooManyConnections

TOO_MANY: Final = "too many requests are in flight"


class InFlightRequests:
    """Counts the requests in flight and the bytes that they hold, and holds the flag `draining`.

    Belongs to one event loop.

    `service.server` sets `draining` once, and waits with `idle`. `ModelRegistry` waits with `wait_for_current` before
    it closes a model.

    Args:
        max_bytes: most bytes of the bodies and enlarged pictures of all requests in flight; None for no limit.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.draining = False
        self.count = 0
        self.arriving = 0
        """Small requests of this turn of the event loop that `FastPath` is about to count or to pass on."""
        self.bytes = 0
        self.max_bytes = max_bytes
        self._idle = asyncio.Event()
        self._idle.set()
        self._epoch = Epoch()
        self._past_epochs: list[Epoch] = []

    def enter(self) -> "Epoch":
        """Count a request that begins; pass the return value to `leave`."""
        epoch = self._epoch
        epoch.requests += 1
        self.count += 1
        self._idle.clear()
        return epoch

    def hold(self, state: MutableMapping[str, Any], size: int) -> None:
        """Count bytes of a body, or of enlarged pictures, until their request ends.

        Bytes of a body count as they arrive. If an announced length counted, a few slow clients could reserve
        everything without sending a byte.

        Args:
            state: of the request.
            size: number of bytes.

        Raises:
            TooManyBytes: they would pass the limit.
        """
        if self.max_bytes is not None and self.bytes + size > self.max_bytes:
            raise TooManyBytes("the requests in flight hold too many bytes")
        self.bytes += size
        state["body_bytes"] = state.get("body_bytes", 0) + size

    def release(self, state: MutableMapping[str, Any]) -> None:
        """Take back the bytes that `hold` counted for a request that `leave` will not end."""
        self.bytes -= state.pop("body_bytes", 0)

    def leave(self, epoch: "Epoch", body_bytes: int = 0) -> None:
        """Count a request that has ended, and the bytes of its body that `hold` counted."""
        self.count -= 1
        self.bytes -= body_bytes
        if self.count == 0:
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


class ConcurrencyLimitMiddleware:
    """Answers 503 to requests beyond a limit, and to all new requests while draining; health and metrics always pass.

    Args:
        app: the application behind it.
        in_flight: the counter; the server sets its flag `draining`.
        limit: most requests in flight, each from its headers to the end of its answer.
        open_paths: exact paths that are neither counted nor rejected.
    """

    def __init__(
        self, app: ASGIApp, *, in_flight: InFlightRequests, limit: int, open_paths: Collection[str] = HEALTH_PATHS
    ) -> None:
        self._app = app
        self._in_flight = in_flight
        self._limit = limit
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        in_flight = self._in_flight
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
        elif in_flight.draining:
            await send_problem(scope, send, Draining("the service is shutting down"))
        elif in_flight.count >= self._limit:
            await send_problem(scope, send, TooManyConnections(TOO_MANY))
        else:
            epoch = in_flight.enter()
            try:
                await self._app(scope, receive, send)
            finally:
                in_flight.leave(epoch, scope.get("state", {}).get("body_bytes", 0))
