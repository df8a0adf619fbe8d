"""Requests in flight: counted, and refused beyond a limit."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http.problems import send_problem
from service.api.middleware.auth import HEALTH_PATHS
from service.domain.errors import Draining, TooManyConnections

TOO_MANY: Final = "too many requests are in flight"


class InFlightRequests:
    """The requests in flight, and whether new ones are taken. Belongs to one event loop."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._era = _Epoch()
        self._past: list[_Epoch] = []

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request for as long as the block runs."""
        era = self._era
        era.requests += 1
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()
            era.requests -= 1
            if era.requests == 0 and era is not self._era:
                era.over.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    async def settled(self) -> None:
        """Wait until those in flight at the time of the call are over, whoever comes later.

        What had a name before that time and has none now is then in nobody's hands.
        """
        self._past = [era for era in (*self._past, self._era) if era.requests]
        self._era = _Epoch()
        for era in list(self._past):
            await era.over.wait()


class _Epoch:
    """The requests that came between two calls of `InFlightRequests.settled`."""

    def __init__(self) -> None:
        self.requests = 0
        self.over = asyncio.Event()  # no request is left, and no other can come


class ConcurrencyLimitMiddleware:
    """Refuses requests beyond a limit, and all new ones while draining; health and metrics always pass.

    Args:
        app: the application behind it.
        traffic: what it counts in; whoever drains sets its flag.
        limit: most requests in flight, each from its headers to the end of its answer.
        open_paths: exact paths that are neither counted nor refused.
    """

    def __init__(
        self, app: ASGIApp, *, traffic: InFlightRequests, limit: int, open_paths: Collection[str] = HEALTH_PATHS
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._limit = limit
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
        elif self._traffic.draining:
            await send_problem(scope, send, Draining("the service is shutting down"))
        elif self._traffic.in_flight >= self._limit:
            await send_problem(scope, send, TooManyConnections(TOO_MANY))
        else:
            with self._traffic.request():
                await self._app(scope, receive, send)
