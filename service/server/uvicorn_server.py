"""uvicorn as this service runs it: its socket, its protocol, its shutdown."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.app_state import Services
from service.domain.errors import StartupError
from service.server.early_rejection import Door
from service.settings import Settings

Config = uvicorn.Config
_LOG = logging.getLogger("service")
BACKLOG: Final = 2048
ACCEPTS: Final = 8
"""Connections accepted in one turn of the event loop: uvloop takes no more than one from a socket."""
KEEP_ALIVE_S: Final = 75
"""A connection may idle so long: longer than load balancers keep theirs, most of them a minute. One that is closed here
while they send the next request on it costs that request, as a POST is not sent twice."""

_UNAVAILABLE: Final = b"HTTP/1.1 503 Service Unavailable\r\n"
_REFUSED = cast(RequestResponseCycle, SimpleNamespace(response_complete=True, message_event=asyncio.Event()))
_JOINED: Final = 1 << 16  # bytes: to copy a longer body costs more than a second write


class Server(uvicorn.Server):
    """uvicorn with shutdown as the contract says: keep the listener, answer 503, leave when no work is in flight.

    Args:
        config: uvicorn's.
        found: the app's services.
    """

    def __init__(self, config: Config, found: Services) -> None:
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
        settings, traffic = self._services.settings, self._services.traffic
        _LOG.info("draining: %d requests in flight", traffic.in_flight)
        traffic.draining = True
        try:
            async with asyncio.timeout(settings.drain_s):
                await asyncio.sleep(settings.drain_delay_s)
                await traffic.idle()
        except TimeoutError:
            self._cut_off()
        self.should_exit = True

    def _cut_off(self) -> None:
        _LOG.warning("cutting off %d requests", self._services.traffic.in_flight)
        self._services.lineup.cut_off()  # their callers are told
        self.should_exit = True


class HttpProtocol(HttpToolsProtocol):
    """Sends the head of an answer together with its body, and asks at the door before it begins a request.

    uvicorn writes head and body one after the other: two system calls, and a client that is woken for half an answer.
    """

    def __init__(self, *args: Any, door: Door | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Stand between uvicorn and the socket."""
        super().connection_made(cast(asyncio.Transport, _Corked(transport)))

    def on_headers_complete(self) -> None:
        """Refuse the request, if it has to be, before anything is made for it."""
        door = self._door
        if door is None or not door.is_full() or not self._answered():
            super().on_headers_complete()
            return
        refusal = door.refusal(self.parser.get_method(), self.headers)
        if refusal is None:
            super().on_headers_complete()
        else:
            self._refuse(refusal)

    @property
    def _last(self) -> RequestResponseCycle | None:
        return self.cycle  # uvicorn's annotation leaves out that there is none before the first request

    def _answered(self) -> bool:
        """Whether the request before this one is: else this one must wait for it, pipelined."""
        return self._last is None or self._last.response_complete

    def _refuse(self, refusal: bytes) -> None:
        if self._last is None:
            self.cycle = _REFUSED  # what is still to come of the body is passed over, as after any complete answer
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        parting = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((_UNAVAILABLE, *head, parting, refusal)))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        begin = partial(super()._start_asgi_task, cycle, app)
        if self._door is None:
            begin()
        else:
            cast(dict[str, Any], cycle.scope)["state"]["arrival"] = time.monotonic()
            self._door.enter(begin, self.loop.call_soon)


class _Corked:
    """A transport that holds what is written first in a turn of the event loop until more follows, or the turn ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""

    def write(self, data: bytes) -> None:
        if not self._held:
            self._held = data
            self._loop.call_soon(self._release)
        elif len(data) > _JOINED:
            self._release()
            self._transport.write(data)
        else:
            self._held += data
            self._release()

    def close(self) -> None:
        self._release()
        self._transport.close()

    def _release(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:  # the rest is the transport's own
        return getattr(self._transport, name)


def config(app: Callable[..., Any], door: Door | None = None) -> Config:
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


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the address that the settings name.

    Raises:
        StartupError: the address cannot be had.
    """
    listener = bind(settings.host, settings.port)
    try:
        begin(listener, settings)
    except StartupError:
        listener.close()
        raise
    return listener


def begin(bound: socket.socket, settings: Settings) -> None:
    """Let this socket, bound to the address that the settings name, listen.

    Raises:
        StartupError: another one does: many can be bound to one port.
    """
    try:
        bound.listen(BACKLOG)
    except OSError as exc:
        raise _unusable(settings.host, settings.port, exc) from exc


def announce(bound: socket.socket) -> None:
    """Log where this socket can be reached."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if bound.family == socket.AF_INET6 else host
    _LOG.info("listening on http://%s:%d", shown, port)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to the address; ``shared``: others that are so too may listen there beside it (SO_REUSEPORT).

    Raises:
        StartupError: the address cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
    except OSError as exc:
        found.close()
        raise _unusable(host, port, exc) from exc
    return found


def _unusable(host: str, port: int, exc: OSError) -> StartupError:
    return StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")
