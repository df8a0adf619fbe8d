"""One serving process: the only one, or one of several."""

import logging
import logging.config
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from service import server
from service.api.middleware import JsonFormatter
from service.domain.errors import StartupError
from service.settings import Settings
from service.supervisor import LISTENING


def work(settings: Settings, parent: Connection) -> None:
    """What each of several processes does."""
    configure_logging(settings)
    try:
        with server.bind(settings.host, settings.port, shared=True) as listener:
            listener.listen(server.BACKLOG)
            parent.send_bytes(LISTENING)
            serve(settings, listener, parent)
    except StartupError as exc:
        parent.send_bytes(exc.detail.encode())


def forget(pid: int, folder: Path) -> None:
    """Drop the gauges of a process that has ended from the metrics in this folder."""
    from service.metrics import forget_process

    forget_process(pid, folder)


def serve(settings: Settings, listener: socket.socket, parent: Connection | None = None) -> None:
    """Serve on this socket until told to stop, or until the parent is gone.

    Raises:
        StartupError: a setting or a model is unusable.
    """
    from service.app import create_app, make_door

    refusals: list[StartupError] = []

    def refuse(exc: StartupError) -> None:
        refusals.append(exc)
        running.should_exit = True

    app = create_app(settings, refuse=refuse)
    found = app.state.services
    running = server.Server(server.config(app, make_door(found)), found, parent=parent)
    running.run(sockets=[listener, *(listener.dup() for _ in range(server.ACCEPTS - 1))])
    if refusals:
        raise refusals[0]


def configure_logging(settings: Settings) -> None:
    """Log to stderr, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # uvicorn says what this program says itself, or what the access log says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It warns of every malformed form; the answer has said so.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("service.access").setLevel(logging.INFO if settings.access_log else logging.WARNING)
