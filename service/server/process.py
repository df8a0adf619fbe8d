"""A server process: its logging, its end, and the server that it runs. It is the only one, or one of several."""

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Final, NoReturn

from service.domain.errors import StartupError
from service.observability.logs import JsonFormatter, QueuedHandler, TextFormatter, count_drops, flush_log
from service.server import sockets, uvicorn_server
from service.settings import Settings

ACCEPTS_PER_TICK: Final = 8
"""Connections accepted in one iteration of the event loop. uvloop accepts one per listening socket, so the server
listens on as many duplicates of its socket."""
_JOIN_S: Final = 0.5  # for threads that are about to end
_GC_THRESHOLD: Final = 10_000  # new objects between two collections; Python's default is 700


def child_main(settings: Settings, messages: Connection) -> None:
    """The main function of one of several server processes; see `service.server.process.child_main`."""
    # Ctrl-C in a terminal reaches the parent only, which passes it on as SIGTERM.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # discards a SIGINT that arrived while the parent blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_stop_with_parent, name="ign-parent", daemon=True).start()
    configure_logging(settings)
    try:
        with sockets.bind(settings.host, settings.port, shared=True) as bound:
            status = run_server(settings, bound, messages)
    except StartupError as exc:
        _report(messages, exc.detail)
        status = 0
    leave(status)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _report(messages: Connection, text: str) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        messages.send(text)


def run_server(settings: Settings, listener: socket.socket, messages: Connection | None = None) -> int:
    """Serve on a socket until a signal, or until no device is left.

    Args:
        settings: the share of this process.
        listener: listens already, or with ``messages`` it is only bound, and listens when the models are ready.
        messages: for one of several server processes, the connection to its parent.

    Returns:
        The exit status: 0, or 1 if no device is left. A new process may have the device again.

    Raises:
        StartupError: a setting or a model is unusable.
    """
    from service.app import build_services, create_app, make_connections

    errors: list[StartupError] = []
    tasks: list[asyncio.Task[None]] = []

    def on_startup_error(exc: StartupError) -> None:
        errors.append(exc)
        server.should_exit = True

    def on_ready() -> None:
        tune_gc()
        if messages is None:
            sockets.write_startup_line(listener)
        else:
            tasks.append(asyncio.get_running_loop().create_task(start_listening(messages)))

    async def start_listening(messages: Connection) -> None:
        try:
            await server.add_sockets(listeners)
            _report(messages, "")
        except OSError as exc:  # another program listens on the port
            on_startup_error(sockets.bind_error(settings.host, settings.port, exc))

    services = build_services(settings, on_device_lost=lambda: server.abort())
    app = create_app(services, on_startup_error=on_startup_error, on_ready=on_ready)
    connections = make_connections(services)
    config = uvicorn_server.config(app, connections)
    server = uvicorn_server.IgnServer(config, services, connections, is_child=messages is not None)
    listeners = [listener, *(listener.dup() for _ in range(ACCEPTS_PER_TICK - 1))]
    count_drops(services.metrics.dropped_log_lines.inc)
    server.run(sockets=listeners)
    if errors:
        raise errors[0]
    return int(server.aborted)


def tune_gc() -> None:
    """Exclude all objects that exist now, modules and models, from garbage collection, and make collections rare.

    Requests create no reference cycles. Without this, collections that find nothing take 5 % of the CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


def leave(status: int) -> NoReturn:
    """End this process, also if a thread is busy or the log cannot be written: Python would wait for both."""
    written = flush_log()
    deadline = time.monotonic() + _JOIN_S
    busy = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    for thread in busy:
        thread.join(max(0.0, deadline - time.monotonic()))
    if written and not any(thread.is_alive() for thread in busy):
        sys.exit(status)
    os._exit(status)


def configure_logging(settings: Settings) -> None:
    """Log to stderr in the format of the settings, from a thread of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[QueuedHandler(handler)], force=True)
    # This service writes its own startup, shutdown and access lines.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It warns about each malformed form, which the response already reports.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("service.access").setLevel(logging.INFO if settings.access_log else logging.WARNING)
    # The formatters do not use thread and process names, and finding them costs time for each request.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
