"""Several worker processes on one port (`IGN_WORKERS`): start them, restart those that die, stop them all.

The kernel distributes connections among the sockets that listen (SO_REUSEPORT), so a worker listens only when models
are ready. Each worker has its own models, queue and batches, which is for CPUs: on a GPU, a second process would split
the batches. Or there is a further process, the engine, which runs the models for all workers.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import socket
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
from service.engine import links
from service.environment import available_cpus, share_metrics, stop_signals
from service.settings import Settings

ChildMain = Callable[[Settings, Connection, socket.socket | None], None]
"""Runs in a child process, and is importable by name. Through the connection it sends "" when it listens, or the
reason why it does not start. It drains upon SIGTERM and when the parent process ends. systemd sends SIGTERM to every
process, and the parent passes its own on, so a second SIGTERM changes nothing; SIGINT ends the requests of a child that
drains. The socket is there if there is an engine: it receives the links between workers and engine, see
`service.engine.links`."""

_LOG = logging.getLogger("service")
_RESTART_INTERVAL_S: Final = 1.0  # between the start of a worker and that of its replacement, at least


def per_worker_settings(settings: Settings) -> Settings:
    """The settings of one worker: an equal share of the limits, but always room for one full request."""

    def share(limit: int, minimum: int = 1) -> int:
        return max(minimum, math.ceil(limit / settings.workers))

    return settings.replace(
        threads=max(1, (settings.threads or available_cpus()) // settings.workers),
        queue_rows=share(settings.queue_rows, settings.max_images),
        max_inflight_requests=share(settings.max_inflight_requests),
        max_inflight_bytes=share(settings.max_inflight_bytes, settings.max_body_bytes),
        max_open_connections=share(settings.max_open_connections),
    )


def supervise(
    settings: Settings, main: ChildMain, *, engine: ChildMain | None = None, on_listening: Callable[[], None]
) -> int:
    """Run `settings.workers` worker processes until a signal of `stop_signals`. Call it in the main thread.

    The first signal drains the workers, a second one ends their requests.

    Args:
        settings: of the whole service; the workers divide its limits.
        main: the workers' main function.
        engine: the main function of the engine's process, if there is one. It stops after all workers.
        on_listening: called when the first worker listens.

    Returns:
        The exit status: 0 if every worker stopped cleanly, else the status of the first that did not.

    Raises:
        StartupError: a worker refused to start, or the system starts no process. The others are stopped.
    """
    with tempfile.TemporaryDirectory(prefix="ign-metrics-", ignore_cleanup_errors=True) as folder:
        share_metrics(Path(folder))
        return _Supervisor(settings, main, engine, on_listening, Path(folder)).run()


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    messages: Connection
    control: socket.socket | None
    is_engine: bool
    started: float


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        main: ChildMain,
        engine: ChildMain | None,
        on_listening: Callable[[], None],
        metrics: Path,
    ) -> None:
        self._settings, self._main, self._engine = settings, main, engine
        self._on_listening, self._metrics = on_listening, metrics
        self._worker_settings = per_worker_settings(settings)
        self._context = multiprocessing.get_context("spawn")
        # Signal handlers only write into this pipe: an OSError of a handler within `is_alive` would lose the status.
        self._signals, self._signalled = self._context.Pipe(duplex=False)
        self._workers: list[_Worker] = []
        self._listening = self._stopping = False
        self._status = 0
        self._refusal = ""

    def run(self) -> int:
        numbers = stop_signals()
        for number in numbers:
            signal.signal(number, lambda *_: self._signalled.send(None))
        resource_tracker.ensure_running()  # else `Process.start` starts it, and that unblocks SIGINT
        self._start_all()
        self._watch()
        for number in numbers:  # nothing is left to stop, and the status is known
            signal.signal(number, signal.SIG_IGN)
        if self._refusal:
            raise StartupError(self._refusal)
        return self._status

    def _start_all(self) -> None:
        try:
            if self._engine is not None:
                self._start(is_engine=True)
            for _ in range(self._settings.workers):
                self._start()
        except OSError as exc:
            self._refusal = f"IGN_WORKERS={self._settings.workers}: a process cannot be started: {exc}"
            self._stop()

    def _watch(self) -> None:
        """Replace workers that end, until all have stopped."""
        while self._workers:
            handles = [handle for worker in self._workers for handle in (worker.messages, worker.process.sentinel)]
            wait([self._signals, *handles])
            self._receive_signals()
            for worker in list(self._workers):
                self._receive(worker)
                if not worker.process.is_alive():
                    self._reap(worker)

    def _start(self, *, is_engine: bool = False) -> None:
        """Start a worker or the engine.

        Raises:
            OSError: the system has no files, processes or memory for it.
        """
        main = self._engine if is_engine else self._main
        name, settings = ("ign-engine", self._settings) if is_engine else ("ign-worker", self._worker_settings)
        self._metrics.mkdir(mode=0o700, exist_ok=True)  # a program that cleans folders may have removed it
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as its:
            messages, its_messages = self._context.Pipe(duplex=False)
            ours.push(messages)
            its.push(its_messages)
            control = its_control = None
            if self._engine is not None:
                control, its_control = links.control_pair()
                ours.push(control)
                its.push(its_control)
            process = self._context.Process(target=main, args=(settings, its_messages, its_control), name=name)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits this, and unblocks it later
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            ours.pop_all()
        worker = _Worker(process, messages, control, is_engine, time.monotonic())
        self._workers.append(worker)
        try:
            self._link(worker)
        except OSError as exc:
            process.kill()  # it would wait for its link for ever; `_watch` replaces it
            _LOG.error("a link between processes cannot be made: %s", exc)

    def _link(self, worker: _Worker) -> None:
        for other in self._workers:
            front, engine = (other, worker) if worker.is_engine else (worker, other)
            if engine.is_engine and not front.is_engine and front.control is not None and engine.control is not None:
                links.link(front.control, engine.control)

    def _receive_signals(self) -> None:
        while self._signals.poll():
            self._signals.recv()
            self._stop()

    def _receive(self, worker: _Worker) -> None:
        with contextlib.suppress(EOFError, OSError):  # the worker is gone
            while worker.messages.poll():
                refusal = worker.messages.recv()
                if refusal:
                    self._refusal = self._refusal or refusal
                    if not self._stopping:  # a second stop would cut requests off
                        self._stop()
                elif not self._listening:
                    self._listening = True
                    self._on_listening()

    def _reap(self, worker: _Worker) -> None:
        from service.observability.metrics import forget_process  # its import reads the variable of `share_metrics`

        worker.process.join()
        worker.messages.close()
        if worker.control is not None:
            worker.control.close()
        self._workers.remove(worker)
        forget_process(worker.process.pid or 0, self._metrics)
        status = worker.process.exitcode or 0
        if not self._stopping:
            what = "engine" if worker.is_engine else "worker"
            _LOG.error("%s %s ended with status %s and is restarted", what, worker.process.pid, status)
            self._replace(worker)
            return
        if all(other.is_engine for other in self._workers):
            self._terminate()
        if status != -signal.SIGTERM:  # a worker that has just started dies of the signal
            self._status = self._status or abs(status)

    def _replace(self, worker: _Worker) -> None:
        """Start a process like this one, which has ended. While the system starts none, try again until a signal."""
        started = worker.started
        while True:
            wait([self._signals], max(0.0, started + _RESTART_INTERVAL_S - time.monotonic()))
            self._receive_signals()
            if self._stopping:
                return
            started = time.monotonic()
            try:
                self._start(is_engine=worker.is_engine)
            except OSError as exc:
                _LOG.error("a process cannot be started: %s", exc)
            else:
                return

    def _stop(self) -> None:
        number = signal.SIGINT if self._stopping else signal.SIGTERM
        self._stopping = True
        self._terminate(number)

    def _terminate(self, number: int = signal.SIGTERM) -> None:
        """End the workers; when they have ended, the engine."""
        workers = [worker for worker in self._workers if not worker.is_engine]
        for worker in workers or self._workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, number)
