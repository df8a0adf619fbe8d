"""A serving process: its logging, and the server that it runs. It is the only process, or one of several workers."""

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

_LOG = logging.getLogger("service")
_JOIN_S: Final = 0.5  # for threads that are about to end
_EXIT_GRACE_S: Final = 3.0  # after the time of draining, to close connections and models
_GC_THRESHOLD: Final = 10_000  # new objects between two collections; Python's default is 700


def worker_main(settings: Settings, messages: Connection, control: socket.socket | None) -> None:
    """The main function of one of several workers; see `service.server.supervisor.WorkerMain`."""
    leave_process_group()
    threading.Thread(target=stop_with_parent, name="ign-parent", daemon=True).start()
    configure_logging(settings)
    try:
        with sockets.bind(settings.host, settings.port, shared=True) as bound:
            status = run_server(settings, bound, messages, control)
    except StartupError as exc:
        report(messages, exc.detail)
        status = 0
    leave(status)


def leave_process_group() -> None:
    """Leave the parent's process group, and unblock SIGINT, which the parent blocks before it starts this process.

    Ctrl-C in a terminal then reaches the parent only, which passes it on as SIGTERM.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # discards a SIGINT that arrived while it was blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def stop_with_parent() -> None:
    """Send this process SIGTERM when its parent has ended; the main function of a thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def report(messages: Connection, text: str) -> None:
    """Send the parent a message of a worker; see `service.server.supervisor.WorkerMain`."""
    with contextlib.suppress(OSError):  # the parent is gone
        messages.send(text)


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


class ExitTimer:
    """Ends this process when a stopping server does not end it in time, whatever its threads do."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []

    def start(self, seconds: float, status: int) -> None:
        """End the process after so many seconds and a grace, with this status."""
        timer = threading.Timer(seconds + _EXIT_GRACE_S, self._exit, [status])
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def cancel(self) -> None:
        """Let the process end by itself."""
        for timer in self._timers:
            timer.cancel()

    @staticmethod
    def _exit(status: int) -> None:
        _LOG.warning("a thread does not end: the process ends without it")
        flush_log()
        os._exit(status)


def run_server(
    settings: Settings,
    listener: socket.socket,
    messages: Connection | None = None,
    control: socket.socket | None = None,
) -> int:
    """Serve on a socket until a signal, or until no device is left.

    Args:
        settings: of this process.
        listener: the socket. It listens already, or with ``messages`` it is only bound and listens when the models are
            ready.
        messages: for one of several workers, the connection to its parent.
        control: receives the links to the engine's process; None if the models run in this one.

    Returns:
        The exit status: 0, or 1 if no device is left. A new process may have the device again.

    Raises:
        StartupError: a setting or a model is unusable.
    """
    from service.app import build_front_end, build_services, create_app, make_connections, make_early_rejection

    refusals: list[StartupError] = []
    tasks: list[asyncio.Task[None]] = []

    def refuse(exc: StartupError) -> None:
        refusals.append(exc)
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
            report(messages, "")
        except OSError as exc:  # another program listens on the port
            refuse(sockets.bind_error(settings.host, settings.port, exc))

    if control is None:
        services = build_services(settings, on_device_lost=lambda: server.abort())
    else:
        services = build_front_end(settings, control)
    app = create_app(services, on_startup_error=refuse, on_ready=on_ready)
    config = uvicorn_server.config(app, make_early_rejection(services), make_connections(services), app.state.fast_path)
    exit_timer = ExitTimer()
    server = uvicorn_server.IgnServer(
        config,
        services,
        is_worker=messages is not None,
        on_stop=lambda seconds: exit_timer.start(seconds, int(server.aborted)),
    )
    listeners = [listener, *(listener.dup() for _ in range(uvicorn_server.ACCEPTS_PER_TICK - 1))]
    count_drops(services.metrics.dropped_log_lines.inc)
    try:
        server.run(sockets=listeners)
    finally:
        exit_timer.cancel()
    if refusals:
        raise refusals[0]
    return int(server.aborted)


def tune_gc() -> None:
    """Exclude all objects that exist now, modules and models, from garbage collection, and make collections rare.

    Requests create no reference cycles. Without this, collections that find nothing take 5 % of the CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


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
