"""Several server processes on one port (`IGN_WORKERS`): start them, restart those that die, stop them all.

Each has a socket of its own, and the kernel distributes connections among those that listen (SO_REUSEPORT). So a
process gets none until its models are ready; an inherited socket that listens would give it some. Each has its own
models, queue and batches, which is for CPUs: on a GPU, a second process would split the batches.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError
from service.environment import available_cpus, share_metrics, stop_signals
from service.settings import Settings

ChildMain = Callable[[Settings, Connection], None]
"""Runs in a child process, and is importable by name. Through the connection it sends "" when it listens, or the
reason why it does not start. It drains upon SIGTERM and when the parent process ends. systemd sends SIGTERM to every
process, and the parent passes its own on, so a second SIGTERM changes nothing; SIGINT ends the requests of a child that
drains."""

_LOG = logging.getLogger("service")
_RESTART_INTERVAL_S: Final = 1.0  # between the start of a process and that of its replacement, at least


def per_process_settings(settings: Settings) -> Settings:
    """The settings of one process: an equal share of the limits, but always room for one full request."""

    def share(limit: int, minimum: int = 1) -> int:
        return max(minimum, math.ceil(limit / settings.workers))

    return settings.replace(
        threads=max(1, (settings.threads or available_cpus()) // settings.workers),
        queue_rows=share(settings.queue_rows, settings.max_images),
        max_inflight_requests=share(settings.max_inflight_requests),
        max_inflight_bytes=share(settings.max_inflight_bytes, settings.max_body_bytes),
        max_open_connections=share(settings.max_open_connections),
    )


def supervise(settings: Settings, main: ChildMain, *, on_listening: Callable[[], None]) -> int:
    """Run `settings.workers` server processes until a signal of `stop_signals`. Call it in the main thread.

    The first signal drains them, a second one ends their requests.

    Args:
        settings: of the whole service; the processes divide its limits.
        main: their main function.
        on_listening: called when the first process listens.

    Returns:
        The exit status: 0 if every process stopped cleanly, else the status of the first that did not.

    Raises:
        StartupError: a process did not start. The others are stopped.
    """
    with tempfile.TemporaryDirectory(prefix="ign-metrics-", ignore_cleanup_errors=True) as folder:
        share_metrics(Path(folder))
        return _Supervisor(settings, main, on_listening, Path(folder)).run()


@dataclass(eq=False)
class _Child:
    process: SpawnProcess
    messages: Connection
    started: float


class _Supervisor:
    def __init__(self, settings: Settings, main: ChildMain, on_listening: Callable[[], None], metrics: Path) -> None:
        self._settings, self._main, self._on_listening, self._metrics = settings, main, on_listening, metrics
        self._child_settings = per_process_settings(settings)
        self._context = multiprocessing.get_context("spawn")
        # Signal handlers only write into this pipe: an OSError of a handler within `is_alive` would lose the status.
        self._signals, self._signalled = self._context.Pipe(duplex=False)
        self._children: list[_Child] = []
        self._listening = self._stopping = False
        self._status, self._error = 0, ""

    def run(self) -> int:
        numbers = stop_signals()
        for number in numbers:
            signal.signal(number, lambda *_: self._signalled.send(None))
        resource_tracker.ensure_running()  # else `Process.start` starts it, and that unblocks SIGINT
        try:
            for _ in range(self._settings.workers):
                self._start()
        except OSError as exc:
            self._fail(f"IGN_WORKERS={self._settings.workers}: a process cannot be started: {exc}")
        while self._children:
            self._watch()
        for number in numbers:  # nothing is left to stop, and the status is known
            signal.signal(number, signal.SIG_IGN)
        if self._error:
            raise StartupError(self._error)
        return self._status

    def _start(self) -> None:
        """Start a process.

        Raises:
            OSError: the system has no files, processes or memory for it.
        """
        self._metrics.mkdir(mode=0o700, exist_ok=True)  # a program that cleans folders may have removed it
        messages, its_messages = self._context.Pipe(duplex=False)
        with its_messages:
            process = self._context.Process(target=self._main, args=(self._child_settings, its_messages))
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited; the child unblocks it later
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._children.append(_Child(process, messages, time.monotonic()))

    def _watch(self) -> None:
        """Wait for a signal, a message or the end of a process, and handle it."""
        handles = [handle for child in self._children for handle in (child.messages, child.process.sentinel)]
        wait([self._signals, *handles])
        self._receive_signals()
        for child in list(self._children):
            self._receive(child)
            if not child.process.is_alive():
                self._reap(child)

    def _receive_signals(self) -> None:
        while self._signals.poll():
            self._signals.recv()
            self._stop(signal.SIGINT if self._stopping else signal.SIGTERM)

    def _receive(self, child: _Child) -> None:
        with contextlib.suppress(EOFError, OSError):  # the process is gone
            while child.messages.poll():
                error = child.messages.recv()
                if error:
                    self._fail(error)
                elif not self._listening:
                    self._listening = True
                    self._on_listening()

    def _reap(self, child: _Child) -> None:
        from service.observability.exposition import forget_process  # its import reads the variable of `share_metrics`

        child.process.join()
        child.messages.close()
        self._children.remove(child)
        forget_process(child.process.pid or 0, self._metrics)
        status = child.process.exitcode or 0
        if not self._stopping:
            _LOG.error("server process %s ended with status %s and is restarted", child.process.pid, status)
            self._replace(child.started)
        elif status != -signal.SIGTERM:  # a process that has just started dies of the signal
            self._status = self._status or abs(status)

    def _replace(self, started: float) -> None:
        """Start a process again. While the system starts none, try again until a signal."""
        while True:
            wait([self._signals], max(0.0, started + _RESTART_INTERVAL_S - time.monotonic()))
            self._receive_signals()
            if self._stopping:
                return
            started = time.monotonic()
            try:
                self._start()
            except OSError as exc:
                _LOG.error("a process cannot be started: %s", exc)
            else:
                return

    def _fail(self, error: str) -> None:
        self._error = self._error or error
        if not self._stopping:  # a second stop would cut requests off
            self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        self._stopping = True
        for child in self._children:
            if child.process.is_alive() and child.process.pid is not None:
                os.kill(child.process.pid, number)
