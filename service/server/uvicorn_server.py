"""uvicorn as this service configures it, with its own shutdown."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import uvicorn
from uvicorn import Config

from service.api.app_state import AppState
from service.environment import stop_signals
from service.observability.logs import flush_log
from service.server.open_connections import OpenConnections
from service.server.protocol import HttpProtocol
from service.server.sockets import BACKLOG, accept_waiting, stop_handshakes

KEEP_ALIVE_S: Final = 75
"""Seconds that an idle connection stays open: longer than in most load balancers (60 s). If the server closed first,
a proxy could send a POST on a closed connection, and it does not send a POST twice."""
_EXIT_GRACE_S: Final = 3.0  # after the time of draining, to close connections and models
_HANDSHAKE_S: Final = 0.1  # for connections that the kernel has begun when the server stops listening
_QUIET_S: Final = 0.5  # a stopping server closes a connection on which nothing has arrived for this time
_LAST_REQUESTS_S: Final = 1.0  # for all connections to become quiet

_LOG = logging.getLogger("service")


class IgnServer(uvicorn.Server):
    """uvicorn with the shutdown of docs/http-api.md: keep listening, answer 503, exit when no request is in flight.

    Only this class sets `AppState.in_flight.draining`. All methods run in the event loop.

    The app of a child, one of several server processes, starts without its sockets, which `add_sockets` takes. A
    second SIGTERM changes nothing there, see `service.server.process.child_main`.
    """

    def __init__(self, config: Config, services: AppState, connections: OpenConnections, *, is_child: bool) -> None:
        super().__init__(config)
        self._services, self._connections, self._is_child = services, connections, is_child
        self._drain_task: asyncio.Task[None] | None = None  # a task without a reference may be collected
        self._has_ended = threading.Event()
        self.aborted = False  # whether it stopped because it could not serve any more

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal. A drain ends this process in time, whatever its threads do."""
        try:
            super().run(sockets)
        finally:
            self._has_ended.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals: the first one drains, the second one ends the requests in flight."""
        loop, numbers = asyncio.get_running_loop(), stop_signals()
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                if self._services.in_flight.draining:  # the process is about to end, with a status of its own
                    signal.signal(number, signal.SIG_IGN)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, and listen unless this is a child."""
        await super().startup([] if self._is_child else sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what has arrived, and close the connections and the app."""
        await self._stop_listening(sockets or [])
        end = time.monotonic() + _LAST_REQUESTS_S
        while self.server_state.connections and (now := time.monotonic()) < end:
            for _ in range(2):  # the event loop reads what has arrived, also if this process was not running
                await asyncio.sleep(0)
            self._connections.finish(now - _QUIET_S)
            await asyncio.sleep(_QUIET_S / 10)
        if self._services.in_flight.draining:
            self._exit_within(0.0)
        await super().shutdown(sockets)

    async def _stop_listening(self, listeners: list[socket.socket]) -> None:
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

    def _protocol(self) -> asyncio.Protocol:  # as in `uvicorn.Server.startup`
        config, state = self.config, self.lifespan.state
        return config.http_protocol_class(config=config, server_state=self.server_state, app_state=state)  # type: ignore[call-arg]

    async def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Listen on these bound sockets too, unless the server drains; raises `OSError` if that is not possible."""
        loop = asyncio.get_running_loop()
        for one in () if self._services.in_flight.draining else sockets:
            self.servers.append(await loop.create_server(self._protocol, sock=one, backlog=self.config.backlog))

    def abort(self) -> None:
        """Drain because this process cannot serve any more, but a new one could."""
        self.aborted = True
        self._begin_drain()

    def _on_signal(self, number: int) -> None:
        if not self._services.in_flight.draining:
            self._begin_drain()
        elif not (self._is_child and number == signal.SIGTERM):
            self._cut_off()

    def _begin_drain(self) -> None:
        if not self._services.in_flight.draining:
            self._exit_within(self._services.settings.drain_s)
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
            self._cut_off()
        self.should_exit = True

    def _cut_off(self) -> None:
        """End the requests in flight; each gets 503 or an `error` event."""
        _LOG.warning("cutting off %d requests", self._services.in_flight.count)
        self._services.registry.abort_all()
        self.should_exit = True

    def _exit_within(self, seconds: float) -> None:
        """End the process after so many seconds and a grace, unless the server has ended by then."""

        def wait() -> None:
            if not self._has_ended.wait(seconds + _EXIT_GRACE_S):
                _LOG.warning("a thread does not end: the process ends without it")
                flush_log()
                os._exit(int(self.aborted))

        threading.Thread(target=wait, name="ign-exit", daemon=True).start()


def config(app: Callable[..., Any], connections: OpenConnections | None = None) -> Config:
    """Configure uvicorn: without its access log, its `Server` header and its handling of proxy headers."""
    protocol = partial(HttpProtocol, connections=connections or OpenConnections())
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
