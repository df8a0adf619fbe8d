"""uvicorn as this service runs it: its socket, its protocol, its shutdown."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.services import Services
from service.domain.errors import StartupError
from service.settings import Settings

_LOG = logging.getLogger("service")
_BACKLOG: Final = 2048


class Server(uvicorn.Server):
    """uvicorn with shutdown as the contract says: keep the listener, answer 503, leave when no work is in flight.

    Args:
        config: uvicorn's.
        found: the app's services.
    """

    def __init__(self, config: uvicorn.Config, found: Services) -> None:
        super().__init__(config)
        self._services = found
        self._draining: asyncio.Task[None] | None = None

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
        for scheduler in self._services.schedulers.values():
            scheduler.close(0)  # their callers are told
        self.should_exit = True


class HttpProtocol(HttpToolsProtocol):
    """Sends the head of an answer together with its body.

    uvicorn writes them one after the other: two system calls, and a client that is woken for half an answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Stand between uvicorn and the socket."""
        super().connection_made(cast(asyncio.Transport, _Corked(transport)))


class _Corked:
    """A transport that holds what is written first in a turn of the event loop until more follows, or the turn ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = data
            self._loop.call_soon(self._release)

    def close(self) -> None:
        self._release()
        self._transport.close()

    def _release(self) -> None:
        if self._held:
            self._transport.write(self._held)
            self._held = b""

    def __getattr__(self, name: str) -> Any:  # the rest is the transport's own
        return getattr(self._transport, name)


def config(app: Callable[..., Any]) -> uvicorn.Config:
    """How uvicorn serves this app: no access log, no headers and no proxy handling of its own."""
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=1,
    )


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the address that the settings name.

    Raises:
        StartupError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)  # two sockets can be bound to one port; only one of them can listen
    except OSError as exc:
        listener.close()
        raise StartupError(f"cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc}") from exc
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    _LOG.info("listening on http://%s:%d", shown, port)
    return listener
