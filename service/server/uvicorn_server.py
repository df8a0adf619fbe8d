"""uvicorn as this service configures it: its listening sockets, and its own shutdown."""

import asyncio
import ctypes
import ipaddress
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, cast

import uvicorn
from uvicorn import Config

from service.api.app_state import AppState
from service.domain.errors import StartupError
from service.environment import stop_signals
from service.observability.logs import flush_log
from service.server.open_connections import OpenConnections
from service.server.protocol import HttpProtocol
from service.settings import Settings

_EXIT_GRACE_S: Final = 3.0  # after the time of draining, to close connections and models
# a stopping server closes a connection on which nothing has arrived for this time
_QUIET_S: Final = 0.5

BACKLOG: Final = 2048
_DROP_SYN: Final = struct.pack(
    "HBBI" * 4,
    *(0x30, 0, 0, 13),  # the flags of the TCP header
    *(0x45, 0, 1, 0x02),  # SYN?
    *(0x06, 0, 0, 0),  # drop the segment
    *(0x06, 0, 0, 1 << 30),  # pass the whole segment
)
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - address that stands for all → one to open

_LOG = logging.getLogger("service")


class IgnServer(uvicorn.Server):
    """uvicorn with the shutdown of docs/http-api.md: keep listening, answer 503, exit when no
    request is in flight.

    Only this class sets `AppState.in_flight.draining`. All methods run in the event loop.

    ``beat`` is that of a child, one of several server processes: the event loop calls it every
    second. The app of a child starts without its sockets, which `add_sockets` takes. A second
    SIGTERM changes nothing there, see `service.server.process.child_main`.
    """

    def __init__(
        self,
        config: Config,
        services: AppState,
        connections: OpenConnections,
        beat: Callable[[], object] | None,
    ) -> None:
        super().__init__(config)
        self._services = services
        self._connections = connections
        self._beat = beat
        # a task without a reference may be collected
        self._drain_task: asyncio.Task[None] | None = None
        self._has_ended = threading.Event()
        self._next_beat = 0.0
        self.aborted = False  # whether it stopped because it could not serve any more

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal. A drain ends this process in time, whatever its threads do."""
        try:
            super().run(sockets)
        finally:
            self._has_ended.set()

    async def on_tick(self, counter: int) -> bool:
        """Send a beat every second; uvicorn calls this ten times a second, if the event loop has
        time for it.
        """
        if self._beat is not None and time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + 1.0
            self._beat()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals: the first one drains, the second one ends the requests in flight."""
        loop = asyncio.get_running_loop()
        numbers = stop_signals()
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                if self._drain_task:  # the process is about to end, with a status of its own
                    signal.signal(number, signal.SIG_IGN)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, and listen unless this is a child."""
        await super().startup([] if self._beat else sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what has arrived, and close the connections and the app."""
        await self._stop_listening(sockets or [])
        end = time.monotonic() + 1.0  # for all connections to become quiet
        while self.server_state.connections and time.monotonic() < end:
            # the event loop reads what has arrived, also if this process was not running
            for _ in range(2):
                await asyncio.sleep(0)
            self._connections.finish(_QUIET_S)
            await asyncio.sleep(_QUIET_S / 10)
        if self._services.in_flight.draining:
            self._exit_within(0.0)
        await super().shutdown(sockets)

    async def _stop_listening(self, listeners: list[socket.socket]) -> None:
        for one in listeners:
            one.setblocking(False)
            stop_handshakes(one)
        last = [one.dup() for one in listeners]  # the event loop closes the others
        await asyncio.sleep(0.1)  # for connections that the kernel has begun
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for one in last:
            with one:
                for connection in accept_waiting(one):
                    await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:  # as in `uvicorn.Server.startup`
        return self.config.http_protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )  # type: ignore[call-arg]

    async def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Listen on these bound sockets too, unless the server drains; raises `OSError` if that is
        not possible.
        """
        loop = asyncio.get_running_loop()
        for one in () if self._drain_task else sockets:
            self.servers.append(
                await loop.create_server(self._protocol, sock=one, backlog=self.config.backlog)
            )

    def abort(self) -> None:
        """Drain because this process cannot serve any more, but a new one could."""
        self.aborted = True
        self._begin_drain()
        self._services.in_flight.draining = True

    def _on_signal(self, number: int) -> None:
        if not self._drain_task:
            self._begin_drain()
        elif not (self._beat and number == signal.SIGTERM):
            self._cut_off()

    def _begin_drain(self) -> None:
        if not self._drain_task:
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        settings = self._services.settings
        in_flight = self._services.in_flight
        self._exit_within(settings.drain_s)
        in_flight.leaving = self._connections.leaving = True
        in_flight.draining |= settings.drain_delay_s == 0
        _LOG.info("draining: %d requests in flight", in_flight.count)
        try:
            async with asyncio.timeout(settings.drain_s):
                await asyncio.sleep(settings.drain_delay_s)
                in_flight.draining = True
                await in_flight.idle()
        except TimeoutError:
            self._cut_off()
        self.should_exit = True

    def _cut_off(self) -> None:
        """End the requests in flight; each gets 503 or an `error` event."""
        self._services.in_flight.draining = True
        _LOG.warning("cutting off %d requests", self._services.in_flight.count)
        self._services.registry.abort_all()
        self.should_exit = True

    def _exit_within(self, seconds: float) -> None:
        """End the process after so many seconds and a grace, unless the server has ended by
        then.
        """

        def wait() -> None:
            if not self._has_ended.wait(seconds + _EXIT_GRACE_S):
                _LOG.warning("a thread does not end: the process ends without it")
                flush_log()
                os._exit(int(self.aborted))

        threading.Thread(target=wait, name="ign-exit", daemon=True).start()


def config(app: Callable[..., Any], connections: OpenConnections) -> Config:
    """Configure uvicorn: without its access log, its `Server` header and its handling of proxy
    headers.
    """
    return Config(
        app,
        http=cast(type[asyncio.Protocol], partial(HttpProtocol, connections=connections)),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=1,
    )


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to this address; port 0 takes a free one, and ``shared`` lets others have it
    too (SO_REUSEPORT).

    Raises StartupError if the address is not available.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        raise bind_error(host, port, exc) from exc
    return bound


def listen_alone(bound: socket.socket) -> socket.socket:
    """Listen on a bound socket. On Linux no other service has its address until the socket that
    this returns is closed.

    Several processes listen later, when their models are ready; till then, the kernel would let
    others have the port. Raises StartupError if the address is not available.
    """
    host, port = bound.getsockname()[:2]
    owner = socket.socket(socket.AF_UNIX)
    try:
        if sys.platform == "linux":  # a name that is no file, and ends with this process
            owner.bind(f"\0ign-service {host}:{port}")
        bound.listen(BACKLOG)
    except OSError as exc:
        owner.close()
        raise bind_error(host, port, exc) from exc
    return owner


def stop_handshakes(listener: socket.socket) -> None:
    """Let the kernel begin no further connection on this socket, where the system can do that
    (Linux).

    A close resets connections that wait to be accepted, so nothing may arrive between the last
    accept and the close. A client that connects later tries again after a second. Then another
    process listens, or the client is refused.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    pointer = struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, 26, pointer)  # SO_ATTACH_FILTER of Linux


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait to be accepted."""
    with suppress(OSError):  # none is left, or the socket does not listen
        while True:
            yield listener.accept()[0]


def write_startup_line(bound: socket.socket, settings: Settings) -> None:
    """Log the URL of this socket, one that a browser on this machine opens, and whether callers
    need keys; warn if other machines may call without. Tests read the port from this line.

    Call it when the service is ready, so that the last line of a service that refuses to start is
    the refusal.
    """
    host, port = bound.getsockname()[:2]
    _LOG.info(
        "listening on http://%s:%d%s %s API keys",
        _WILDCARDS.get(host, f"[{host}]" if ":" in host else host),
        port,
        " (all interfaces)" if host in _WILDCARDS else "",
        "with" if "key" in settings.keyed else "without",
    )
    if not (settings.api_keys_file or settings.public or ipaddress.ip_address(host).is_loopback):
        _LOG.warning("others may call this service: without IGN_API_KEYS_FILE it needs no key")


def bind_error(host: str, port: int, exc: OSError) -> StartupError:
    """The error of a service whose address is not available."""
    return StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")
