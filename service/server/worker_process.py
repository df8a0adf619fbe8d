"""One serving process: the only one, or one of several."""

import gc
import logging
import logging.config
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError
from service.observability.logs import JsonFormatter, TextFormatter
from service.server import sockets, uvicorn_server
from service.server.member import Member
from service.server.supervisor import READY, say
from service.settings import Settings

_COLLECT_AFTER: Final = 10_000  # objects more than at the last collection; Python begins with 700


def work(settings: Settings, parent: Connection) -> None:
    """What each of several processes does."""
    configure_logging(settings)
    try:
        with sockets.bind(settings.host, settings.port, shared=True) as listener:
            if parent.poll():  # told to listen before it was started: before it imports anything large
                sockets.begin(listener, settings)
            serve(settings, listener, parent)
    except StartupError as exc:
        say(parent, exc.detail.encode())


def forget(pid: int, folder: Path) -> None:
    """Drop the gauges of a process that has ended from the metrics in this folder."""
    from service.observability.metrics import forget_process

    forget_process(pid, folder)


def serve(settings: Settings, listener: socket.socket, parent: Connection | None = None) -> int:
    """Serve on this socket until told to stop, or until no device is left.

    With a parent, this is one of several: the socket is only bound, and listens when the parent says so.

    Returns:
        The exit status: 0, or 1 where no device is left, which another process may have back.

    Raises:
        StartupError: a setting or a model is unusable.
    """
    from service.app import build_services, create_app, make_early_rejection

    refusals: list[StartupError] = []

    def refuse(exc: StartupError) -> None:
        refusals.append(exc)
        running.should_exit = True

    def ready() -> None:
        spare_collector()
        if parent is not None:
            say(parent, READY)

    def lost() -> None:
        running.give_up()

    found = build_services(settings, on_device_lost=lost)
    app = create_app(found, on_startup_error=refuse, on_ready=ready)
    config = uvicorn_server.config(app, make_early_rejection(found))
    running = uvicorn_server.IgnServer(config, found) if parent is None else Member(config, found, parent, refuse)
    running.run(sockets=[listener, *(listener.dup() for _ in range(uvicorn_server.ACCEPTS - 1))])
    if refusals:
        raise refusals[0]
    return int(running.broken)


def spare_collector() -> None:
    """Let the garbage collector pass over all that is here by now, modules and models, and come seldom.

    Requests leave no cycles: all it ever did was to look at every object of the process, for a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def configure_logging(settings: Settings) -> None:
    """Log to stderr, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # uvicorn says what this program says itself, or what the access log says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It warns of every malformed form; the answer has said so.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("service.access").setLevel(logging.INFO if settings.access_log else logging.WARNING)
    # No line names them, and there is a line for every request.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
