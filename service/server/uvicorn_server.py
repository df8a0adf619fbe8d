"""uvicorn as this service configures it, with its own shutdown."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import uvicorn

from service.api.app_state import AppState
from service.api.fast_path import FastPath
from service.environment import stop_signals
from service.server.early_rejection import EarlyRejection
from service.server.http_protocol import HttpProtocol
from service.server.open_connections import OpenConnections
from service.server.sockets import BACKLOG, accept_waiting, stop_handshakes

Config = uvicorn.Config
ACCEPTS_PER_TICK: Final = 8
"""Connections accepted in one iteration of the event loop. uvloop accepts one per listening socket, so the server
listens on as many duplicates of its socket."""
KEEP_ALIVE_S: Final = 75
"""Seconds that an idle connection stays open: longer than in most load balancers (60 s). If the server closed first,
a proxy could send a POST on a closed connection, and it does not send a POST twice."""
_HANDSHAKE_S: Final = 0.1  # for connections that the kernel has begun when the server stops listening
_QUIET_S: Final = 0.5  # a stopping server closes a connection on which nothing has arrived for this time
_LAST_REQUESTS_S: Final = 1.0  # for all connections to become quiet

_LOG = logging.getLogger("service")


class IgnServer(uvicorn.Server):
    """uvicorn with the shutdown of docs/http-api.md: keep listening, answer 503, exit when no request is in flight.

    It owns `AppState.in_flight.draining`: only this class sets it. All methods run in the event loop.

    Args:
        config: uvicorn's.
        services: the app's state.
        is_worker: start the app without its sockets, `add_sockets` then takes them; a second SIGTERM changes nothing,
            see `service.server.supervisor.ChildMain`.
        on_stop: called when draining begins, and when it ends, with the seconds that it may still take.
    """

    def __init__(
        self,
        config: Config,
        services: AppState,
        *,
        is_worker: bool = False,
        on_stop: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._services = services
        self._is_worker = is_worker
        self._drain_task: asyncio.Task[None] | None = None  # a task without a reference may be collected
        self.aborted = False
        """Whether the server stopped because it could not serve any more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals: the first one drains, the second one ends the requests in flight."""
        loop = asyncio.get_running_loop()
        numbers = stop_signals()
        for number in numbers:
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                if self._services.in_flight.draining:  # the process is about to end, with a status of its own
                    signal.signal(number, signal.SIG_IGN)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, and listen if that is wanted now."""
        await super().startup([] if self._is_worker else sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what has arrived, and close the connections and the app."""
        await self._stop_listening(sockets or [])
        await self._finish_connections()
        if self._services.in_flight.draining:
            self._on_stop(0.0)
        await super().shutdown(sockets)

    async def _stop_listening(self, listeners: list[socket.socket]) -> None:
        """Close the listening sockets, and accept all connections that were waiting."""
        for one in listeners:
            one.setblocking(False)
            stop_handshakes(one)
        last = [one.dup() for one in listeners]  # the event loop closes the others
        await asyncio.sleep(_HANDSHAKE_S)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for one in last:
            with one:
                for connection in accept_waiting(one):
                    await loop.connect_accepted_socket(self._protocol, connection)

    async def _finish_connections(self) -> None:
        """Answer the requests that still arrive, and close each connection when it is quiet."""
        loop, connections = asyncio.get_running_loop(), self.server_state.connections
        end = loop.time() + _LAST_REQUESTS_S
        while connections and loop.time() < end:
            now = loop.time()
            for _ in range(2):  # the event loop reads what has arrived, also if this process was not running
                await asyncio.sleep(0)
            for connection in list(connections):
                cast(HttpProtocol, connection).finish(now - _QUIET_S)
            await asyncio.sleep(_QUIET_S / 10)

    def _protocol(self) -> asyncio.Protocol:  # as in `uvicorn.Server.startup`
        config, state = self.config, self.lifespan.state
        return config.http_protocol_class(config=config, server_state=self.server_state, app_state=state)  # type: ignore[call-arg]

    async def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Listen on these bound sockets too, unless the server drains.

        Raises:
            OSError: a socket cannot listen.
        """
        loop = asyncio.get_running_loop()
        for one in () if self._services.in_flight.draining else sockets:
            self.servers.append(await loop.create_server(self._protocol, sock=one, backlog=self.config.backlog))

    def abort(self) -> None:
        """Drain because this process cannot serve any more, but a new one could."""
        self.aborted = True
        if not self._services.in_flight.draining:
            self._stop()

    def _stop(self, number: int = 0) -> None:
        if self._services.in_flight.draining:
            if not (self._is_worker and number == signal.SIGTERM):
                self._close_connections()
        else:
            self._on_stop(self._services.settings.drain_s)
            self._services.in_flight.draining = True
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        settings, in_flight = self._services.settings, self._services.in_flight
        _LOG.info("draining: %d requests in flight", in_flight.count)
        try:
            async with asyncio.timeout(settings.drain_s):
                await asyncio.sleep(settings.drain_delay_s)
                await in_flight.idle()
        except TimeoutError:
            self._close_connections()
        self.should_exit = True

    def _close_connections(self) -> None:
        """End the requests in flight; each gets 503 or an `error` event."""
        _LOG.warning("cutting off %d requests", self._services.in_flight.count)
        self._services.registry.abort_all()
        self.should_exit = True


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes the event loop that uvicorn would take; None for the default."""
    return Config("", log_config=None).get_loop_factory()


def config(
    app: Callable[..., Any],
    early_rejection: EarlyRejection | None = None,
    connections: OpenConnections | None = None,
    fast_path: FastPath | None = None,
) -> Config:
    """Configure uvicorn: without its access log, its `Server` header and its handling of proxy headers.

    Args:
        app: an ASGI application.
        early_rejection: None to accept and start every request at once.
        connections: of the event loop that serves; None for the default limits.
        fast_path: of ``app``; None to pass all requests on to it.
    """
    protocol = partial(
        HttpProtocol,
        early_rejection=early_rejection,
        connections=connections or OpenConnections(),
        fast_path=fast_path,
    )
    return Config(
        app,
        http=cast(type[asyncio.Protocol], protocol),
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
