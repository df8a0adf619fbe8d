"""uvicorn as this service runs it: its socket, its protocol, its shutdown."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import uvicorn

from service.api.app_state import AppState
from service.server.early_rejection import EarlyRejection
from service.server.http_protocol import HttpProtocol
from service.server.sockets import _LOG, BACKLOG

Config = uvicorn.Config
ACCEPTS: Final = 8
"""Connections accepted in one turn of the event loop: uvloop takes no more than one from a socket."""
KEEP_ALIVE_S: Final = 75
"""A connection may idle so long: longer than load balancers keep theirs, most of them a minute. One that is closed here
while they send the next request on it costs that request, as a POST is not sent twice."""


class IgnServer(uvicorn.Server):
    """uvicorn with shutdown as the contract says: keep the listener, answer 503, leave when no work is in flight.

    Args:
        config: uvicorn's.
        found: the app's services.
    """

    def __init__(self, config: Config, found: AppState) -> None:
        super().__init__(config)
        self._services = found
        self._draining: asyncio.Task[None] | None = None
        self.broken = False
        """Whether it ends because it can serve no more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first SIGTERM or SIGINT drains, a second one cuts off what is still in flight."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def accept(self, sockets: Iterable[socket.socket]) -> None:
        """Serve these sockets too, when `startup` has had others or none."""
        config, loop = self.config, asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            state = self.lifespan.state
            return config.http_protocol_class(config=config, server_state=self.server_state, app_state=state)  # type: ignore[call-arg]

        for one in sockets:
            self.servers.append(await loop.create_server(protocol, sock=one, backlog=config.backlog))

    def give_up(self) -> None:
        """Leave, as upon a signal, since another process can serve and this one cannot."""
        self.broken = True
        if self._draining is None:
            self._stop()

    def _stop(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._cut_off()

    async def _drain(self) -> None:
        settings, in_flight = self._services.settings, self._services.in_flight
        _LOG.info("draining: %d requests in flight", in_flight.count)
        in_flight.draining = True
        try:
            async with asyncio.timeout(settings.drain_s):
                await asyncio.sleep(settings.drain_delay_s)
                await in_flight.idle()
        except TimeoutError:
            self._cut_off()
        self.should_exit = True

    def _cut_off(self) -> None:
        _LOG.warning("cutting off %d requests", self._services.in_flight.count)
        self._services.registry.abort_all()  # their callers are told
        self.should_exit = True


def config(app: Callable[..., Any], door: EarlyRejection | None = None) -> Config:
    """How uvicorn serves this app: no access log, no headers and no proxy handling of its own."""
    return Config(
        app,
        http=cast(type[asyncio.Protocol], partial(HttpProtocol, door=door)),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
