"""Server processes: what one of them does, and the supervisor of several on one port
(`IGN_WORKERS`).

Each of several has a socket of its own, and the kernel distributes connections among those that
listen (SO_REUSEPORT). So a process gets none until its models are ready; an inherited socket that
listens would give it some. Each has its own models, queue and batches, which is for CPUs: on a GPU,
a second process would split the batches. The event loop of each sends a beat to the supervisor
every second. Without one for 10 s it is killed and replaced, as if it had died.
"""

import asyncio
import gc
import itertools
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, NoReturn

from service.domain.errors import IgnError, StartupError
from service.environment import available_cpus, share_metrics, stop_signals
from service.models.registry import ModelChange
from service.observability.logs import (
    JsonFormatter,
    QueuedHandler,
    TextFormatter,
    count_drops,
    flush_log,
)
from service.observability.metrics import Metrics
from service.server import uvicorn_server
from service.server.open_connections import OpenConnections
from service.server.parent import MESSAGE, Parent, report
from service.settings import Settings

# importable by name, because processes are spawned
ChildMain = Callable[[Settings, Connection], None]

_LOG = logging.getLogger("service")
# between the start of a process and that of its replacement, at least
_RESTART_INTERVAL_S: Final = 1.0
_MAX_INTERVALS: Final = 60  # … for one that dies again and again
# a process that dies after listening for so long does not die again and again
_SERVED_S: Final = 10.0
# deaths of each process in a row before one listens, after which the service ends
_MOST_FAILURES: Final = 5
_TICK_S: Final = 1.0  # between two looks at the processes
_SILENCE_S: Final = 10.0  # without a beat


def child_main(settings: Settings, messages: Connection) -> None:
    """The main function of one of several server processes.

    It sends None every second, "" when it listens, or the reason why it does not start; `Parent`
    says what else. It drains upon SIGTERM and when its parent ends. systemd sends SIGTERM to every
    process, and the parent passes its own on, so a second SIGTERM changes nothing; SIGINT ends the
    requests of a process that drains.
    """
    # Ctrl-C in a terminal then reaches the parent only, which passes it on as SIGTERM.
    os.setpgrp()
    # discards a SIGINT that arrived while the parent blocked it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    configure_logging(settings)
    try:
        with uvicorn_server.bind(settings.host, settings.port, shared=True) as bound:
            status = run_server(settings, bound, messages)
    except StartupError as exc:
        report(messages, exc.detail[:MESSAGE])
        status = 0
    leave(status)


def run_server(
    settings: Settings, listener: socket.socket, messages: Connection | None = None
) -> int:
    """Serve on a socket until a signal, or until no device is left.

    With ``messages``, the connection to its parent, the socket is only bound, and listens when the
    models are ready.

    The exit status is 0, or 1 if no device is left: a new process may have the device again. Raises
    StartupError if a setting or a model is unusable.
    """
    from service.app import build_services, create_app

    errors: list[StartupError] = []
    tasks: list[asyncio.Task[None]] = []

    def on_loaded(error: StartupError | None) -> None:
        if error is not None:
            errors.append(error)
            server.should_exit = True
            return
        tune_gc()
        if messages is None:
            uvicorn_server.write_startup_line(listener, settings)
        else:
            tasks.append(asyncio.get_running_loop().create_task(start_listening(messages)))

    async def start_listening(messages: Connection) -> None:
        parent = Parent(messages, services.registry)
        services.change_everywhere = parent.change
        await parent.begin()
        try:
            await server.add_sockets(listeners)
            report(messages, "")
        except OSError as exc:  # another program listens on the port
            on_loaded(uvicorn_server.bind_error(settings.host, settings.port, exc))

    services = build_services(settings, on_device_lost=lambda: server.abort())
    app = create_app(services, on_loaded=on_loaded)
    connections = OpenConnections(services)
    config = uvicorn_server.config(app, connections)
    if messages is not None:
        os.set_blocking(messages.fileno(), False)  # a supervisor that is stopped does not read
    server = uvicorn_server.IgnServer(
        config,
        services,
        connections,
        beat=None if messages is None else partial(report, messages, None),
    )
    # In a tick, uvloop accepts one connection of each listening socket.
    listeners = [listener, *(listener.dup() for _ in range(7))]
    count_drops(services.metrics.dropped_log_lines.inc)
    server.run(sockets=listeners)
    services.metrics.publish()  # what it has counted since the last second
    if errors:
        raise errors[0]
    _LOG.info("stopped")
    return int(server.aborted)


def tune_gc() -> None:
    """Exclude all objects that exist now, modules and models, from garbage collection, and make
    collections rare.

    Requests create no reference cycles. Without this, collections that find nothing take 5 % of the
    CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # new objects between two collections; Python's default is 700


def leave(status: int) -> NoReturn:
    """End this process, also if a thread is busy or the log cannot be written: `sys.exit` would
    wait for both.
    """
    flush_log()
    os._exit(status)


def configure_logging(settings: Settings) -> None:
    """Log to stderr in the format of the settings, from a thread of its own."""
    handler = QueuedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # This service writes its own startup, shutdown and access lines.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It warns about each malformed form, which the response already reports.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("service.access").setLevel(
        logging.INFO if settings.access_log else logging.WARNING
    )
    # The formatters do not use thread and process names, and finding them costs time for each
    # request.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def per_process_settings(settings: Settings) -> Settings:
    """The settings of one process: an equal share of the limits, but always room for one full
    request.
    """

    def share(limit: int, minimum: int = 1) -> int:
        return max(minimum, math.ceil(limit / settings.workers))

    return settings.replace(
        threads=max(1, (settings.threads or available_cpus()) // settings.workers),
        model_memory_mib=math.ceil(settings.model_memory_mib / settings.workers),
        queue_rows=share(settings.queue_rows, settings.max_images),
        max_inflight_requests=share(settings.max_inflight_requests),
        max_inflight_bytes=share(settings.max_inflight_bytes, settings.max_body_bytes),
        max_open_connections=share(settings.max_open_connections),
    )


def supervise(settings: Settings, main: ChildMain, *, on_listening: Callable[[], None]) -> int:
    """Run `settings.workers` server processes until a signal of `stop_signals`. Call it in the main
    thread.

    The first signal drains them, a second one ends their requests. ``on_listening`` is called when
    the first listens.

    The exit status is 0 if every process stopped cleanly, else the status of the first that did
    not, or the number of the signal that killed it. Raises StartupError if a process does not start
    before one has listened, or processes die again and again before one listens; the others are
    stopped.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="ign-metrics-", ignore_cleanup_errors=True)
    except OSError as exc:
        raise StartupError(
            f"IGN_WORKERS={settings.workers} needs a folder in TMPDIR: {exc.strerror}"
        ) from exc
    with folder as name:
        return _Supervisor(settings, main, on_listening, Path(name)).run()


@dataclass(eq=False)
class _Child:
    process: SpawnProcess
    messages: Connection
    started: float
    place: int  # among the processes; its replacement gets the same
    deaths: int  # of processes in this place that served for less than `_SERVED_S`, in a row
    listened: float = math.inf  # since when
    # seconds since the last beat; the first one has 60 s: the process imports modules before it
    silence: float = _SILENCE_S - 60.0
    is_killed: bool = False


@dataclass(eq=False)
class _Call:
    change: ModelChange
    asker: _Child
    number: int  # that the asker gave it
    waits_for: set[_Child]
    error: IgnError | None = None  # the first


@dataclass(eq=False)
class _Supervisor:
    settings: Settings
    main: ChildMain
    on_listening: Callable[[], None]
    folder: Path

    def __post_init__(self) -> None:
        self._metrics = Metrics.of_supervisor(self.folder / "supervisor.prom")
        self._context = multiprocessing.get_context("spawn")
        # Signal handlers only write into this pipe: an OSError of a handler within `is_alive` would
        # lose the status.
        self._signals, self._signalled = self._context.Pipe(duplex=False)
        self._children: list[_Child] = []
        self._calls: dict[int, _Call] = {}  # by a number of ours
        self._numbers = itertools.count()
        self._unloaded: set[str] = set()  # names that a replacement unloads before it listens
        self._starts: list[
            tuple[float, int, int]
        ] = []  # when to start a replacement, its place, and `deaths` there
        self._failures = 0  # processes that died before they listened, since one has listened
        self._looked = time.monotonic()
        self._kill_at = math.inf
        self._listening = self._stopping = False
        self._status = 0
        self._error = ""

    def run(self) -> int:
        numbers = stop_signals()
        for number in numbers:
            signal.signal(number, lambda *_: self._signalled.send(None))
        # else `Process.start` starts it, and that unblocks SIGINT
        resource_tracker.ensure_running()
        try:
            for place in range(self.settings.workers):
                self._start(place)
        except OSError as exc:
            self._fail(f"IGN_WORKERS={self.settings.workers}: a process cannot be started: {exc}")
        while self._children or self._starts:
            self._watch()
        for number in numbers:  # nothing is left to stop, and the status is known
            signal.signal(number, signal.SIG_IGN)
        if self._error:
            raise StartupError(self._error)
        return self._status

    def _start(self, place: int, deaths: int = 0) -> None:
        """Start a process; raises `OSError` if the system has no files, processes or memory for
        it.
        """
        # a program that cleans folders may have removed it
        self.folder.mkdir(mode=0o700, exist_ok=True)
        share_metrics(self.folder / f"{place}.prom")
        messages, its_messages = self._context.Pipe()
        messages.send(self._unloaded)
        os.set_blocking(messages.fileno(), False)  # a process that hangs does not read
        with its_messages:
            process = self._context.Process(
                target=self.main, args=(per_process_settings(self.settings), its_messages)
            )
            # inherited; the child unblocks it later
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._children.append(_Child(process, messages, time.monotonic(), place, deaths))

    def _watch(self) -> None:
        handles: list[int | Connection] = [child.process.sentinel for child in self._children]
        # at its end before it is dead
        handles += [child.messages for child in self._children if not child.is_killed]
        until = min([start for start, *_ in self._starts], default=math.inf) - time.monotonic()
        wait([self._signals, *handles], max(0.0, min(_TICK_S, until)))
        # If this process was stopped, beats wait in the pipes, and the pause counts as two ticks at
        # most.
        now = time.monotonic()
        passed = min(now - self._looked, 2 * _TICK_S)
        self._looked = now
        while self._signals.poll():
            self._signals.recv()
            self._stop(signal.SIGINT if self._stopping else signal.SIGTERM)
        for child in list(self._children):
            child.silence += passed
            self._receive(child)
            if not child.process.is_alive():
                self._reap(child)
            else:
                self._kill_if_stuck(child, now)
        self._start_replacements(now)

    def _receive(self, child: _Child) -> None:
        with suppress(EOFError, OSError):  # the process is gone
            while child.messages.poll():
                message = child.messages.recv()
                child.silence = 0.0
                match message:
                    case number, ModelChange() as change:
                        self._begin_change(_Call(change, child, number, set(self._children)))
                    case number, error:
                        self._end_change(number, child, error)
                    case "":
                        child.listened = time.monotonic()
                        self._failures = 0
                        if not self._listening:
                            self._listening = True
                            self.on_listening()
                    case str(reason) if self._listening:  # the others go on
                        _LOG.error("process %s does not start: %s", child.process.pid, reason)
                    case str(reason):
                        self._fail(reason)

    def _begin_change(self, call: _Call) -> None:
        """Have every process make a change; each makes those of one name in the order of their
        begin.
        """
        name = call.change.name
        if call.change.loads:  # a process that starts loads what the directory holds
            self._unloaded.discard(name)
        else:
            self._unloaded.add(name)
        number = next(self._numbers)
        self._calls[number] = call
        for child in call.waits_for:
            self._send(child, number, call.change)

    def _end_change(self, number: int, child: _Child, error: IgnError | None = None) -> None:
        """A process has made a change, or is gone."""
        call = self._calls[number]
        call.waits_for.discard(child)
        call.error = call.error or error
        if not call.waits_for:
            del self._calls[number]
            if call.error is not None and not call.change.loads:
                self._unloaded.discard(call.change.name)
            self._send(call.asker, call.number, call.error)

    @staticmethod
    def _send(child: _Child, number: int, content: ModelChange | IgnError | None) -> None:
        try:
            child.messages.send((number, content))
        except BlockingIOError:  # hundreds of messages wait: it hangs, and must miss none
            child.process.kill()
        except OSError:  # it is gone, and `_reap` will notice
            pass

    def _kill_if_stuck(self, child: _Child, now: float) -> None:
        in_time = self._stopping or child.silence < _SILENCE_S
        if child.is_killed or (now < self._kill_at and in_time):
            return
        child.is_killed = True
        _LOG.error(
            "process %s %s in time and is killed",
            child.process.pid,
            "did not stop" if self._stopping else "sent no beat",
        )
        child.process.kill()

    def _reap(self, child: _Child) -> None:
        child.process.join()
        child.messages.close()
        self._children.remove(child)
        for number in [*self._calls]:
            self._end_change(number, child)
        status = child.process.exitcode or 0
        if self._stopping:
            if status != -signal.SIGTERM:  # a process that has just started dies of the signal
                self._status = self._status or abs(status)
            return
        deaths = 0 if time.monotonic() - child.listened >= _SERVED_S else child.deaths
        pause = _RESTART_INTERVAL_S * min(2**deaths, _MAX_INTERVALS)
        _LOG.error(
            "process %s ended with status %s; next start %g s after its own",
            child.process.pid,
            status,
            pause,
        )
        self._starts.append((child.started + pause, child.place, deaths + 1))
        self._metrics.process_replacements("hung" if child.is_killed else "ended").inc()
        self._metrics.publish()
        self._failures += child.listened == math.inf
        is_any_listening = any(other.listened < math.inf for other in self._children)
        if self._failures >= _MOST_FAILURES * self.settings.workers and not is_any_listening:
            self._fail(
                f"server processes died {self._failures} times in a row before one served, "
                f"see the log"
            )

    def _start_replacements(self, now: float) -> None:
        due = [each for each in self._starts if each[0] <= now]
        self._starts = [each for each in self._starts if each not in due]
        for _, place, deaths in due:
            try:
                self._start(place, deaths)
            except OSError as exc:
                _LOG.error("a process cannot be started: %s", exc)
                self._starts.append((now + _RESTART_INTERVAL_S, place, deaths))

    def _fail(self, error: str) -> None:
        self._error = self._error or error
        if not self._stopping:  # a second stop would cut requests off
            self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        if not self._stopping:
            # a process that is not stopped ends within 3 s
            self._kill_at = time.monotonic() + self.settings.drain_s + 4.0
        self._stopping = True
        self._starts.clear()
        for child in self._children:
            if child.process.is_alive() and child.process.pid is not None:
                os.kill(child.process.pid, number)
