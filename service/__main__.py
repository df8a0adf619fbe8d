"""`python -m service`: read the settings, open the port, serve until told to stop."""

import asyncio
import logging
import logging.config
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from service.api.middleware import JsonFormatter
from service.api.services import Services
from service.domain.errors import StartupError
from service.host import check_installed, installed_runtimes
from service.settings import Settings, from_environment, silence_runtime

_LOG = logging.getLogger("service")
_BACKLOG = 2048


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


def main() -> int:
    """Serve; returns the exit status: 0 after a clean stop, 2 for a refusal to start."""
    refusals: list[StartupError] = []
    try:
        # Before anything imports onnxruntime, which would fail less clearly.
        check_installed(installed_runtimes())
        silence_runtime()
        from service.app import create_app

        settings = from_environment()
        _configure_logging(settings)

        def refuse(exc: StartupError) -> None:
            refusals.append(exc)
            server.should_exit = True

        with _listen(settings) as listener:
            app = create_app(settings, refuse=refuse)
            server = Server(_config(app), app.state.services)
            server.run(sockets=[listener])
    except StartupError as exc:
        refusals.append(exc)
    for refusal in refusals:
        print(f"ign-service does not start: {refusal.detail}", file=sys.stderr)  # noqa: T201
    return 2 if refusals else 0


def _config(app: Callable[..., Any]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=1,
    )


def _listen(settings: Settings) -> socket.socket:
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


def _configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # uvicorn says what this program says itself, or what the access log says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
