"""Several processes on one port (`IGN_WORKERS`): a parent that starts them, replaces one that dies, and stops them.

Each has its own model, queue and batches; the kernel deals connections out to them. What an operator limits is divided
among them, and `/metrics` adds them up. For CPUs only: on a GPU a second process would split the batches, not the work.
"""

import dataclasses
import logging
import math
import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError
from service.host import cpu_threads
from service.settings import Settings, share_metrics

Work = Callable[[Settings, Connection], None]
"""What a process does. It sends `LISTENING` once it does, or why it refuses to start, as UTF-8, and ends; it stops when
the connection closes."""
LISTENING: Final = b""

_LOG = logging.getLogger("service")
_PAUSE_S: Final = 1.0  # between the starts of processes that keep dying


def share_of(settings: Settings) -> Settings:
    """One process's part of the operator's limits; every process can still take a full request."""

    def part(limit: int, least: int = 1) -> int:
        return max(least, math.ceil(limit / settings.workers))

    return dataclasses.replace(
        settings,
        threads=max(1, cpu_threads(settings.threads) // settings.workers),
        queue_rows=part(settings.queue_rows, settings.max_images),
        max_connections=part(settings.max_connections),
    )


def supervise(
    settings: Settings, work: Work, *, listening: Callable[[], None], forget: Callable[[int, Path], None]
) -> int:
    """Run ``work`` in `settings.workers` processes until told to stop.

    Args:
        settings: what the operator decided.
        work: run in every process; importable by name.
        listening: called when the first of them listens.
        forget: told of every process that has ended and of the folder of the metrics, to drop its gauges.

    Returns:
        The exit status: 0 if every process stopped cleanly.

    Raises:
        StartupError: a process refused to start; the others have been stopped.
    """
    folder = Path(tempfile.mkdtemp(prefix="ign-metrics-"))
    share_metrics(folder)
    try:
        return _Crew(share_of(settings), work, listening, lambda pid: forget(pid, folder)).run(settings.workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Crew:
    def __init__(
        self, settings: Settings, work: Work, listening: Callable[[], None], ended: Callable[[int], None]
    ) -> None:
        self._settings, self._work, self._ended = settings, work, ended
        self._listening: Callable[[], None] | None = listening
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[SpawnProcess, Connection] = {}
        self._open: list[Connection] = []
        self._stopping = False
        self._status = 0
        self._refusal: str | None = None

    def run(self, count: int) -> int:
        with self._signals():
            for _ in range(count):
                self._start()
            while self._members:
                wait([*(member.sentinel for member in self._members), *self._open])
                for connection in list(self._open):
                    self._hear(connection)
                for member in [member for member in self._members if not member.is_alive()]:
                    self._bury(member)
        if self._refusal is not None:
            raise StartupError(self._refusal)
        return self._status

    def _start(self) -> None:
        # This process sends nothing: when it is gone, however it went, the other end reads end-of-file.
        ours, theirs = self._context.Pipe()
        member = self._context.Process(target=self._work, args=(self._settings, theirs), name="ign-worker")
        member.start()
        theirs.close()
        self._members[member] = ours
        self._open.append(ours)
        if self._stopping:  # a signal came in between
            member.terminate()

    def _hear(self, connection: Connection) -> None:
        try:
            while connection.poll():
                said = connection.recv_bytes()
                if said != LISTENING:
                    self._refusal = self._refusal or said.decode()
                elif self._listening is not None:
                    self._listening()
                    self._listening = None
        except (EOFError, OSError):
            self._open.remove(connection)

    def _bury(self, member: SpawnProcess) -> None:
        member.join()
        connection = self._members.pop(member)
        if connection in self._open:
            self._hear(connection)
        connection.close()
        self._ended(member.pid or 0)
        if self._refusal is not None and not self._stopping:
            self._stop()
        elif self._stopping and member.exitcode != -signal.SIGTERM:  # of which one dies that has just been started
            self._status = self._status or abs(member.exitcode or 0)
        elif not self._stopping:
            _LOG.error("process %s ended with status %s; another takes its place", member.pid, member.exitcode)
            time.sleep(_PAUSE_S)
            if not self._stopping:
                self._start()

    def _stop(self) -> None:
        """The first time they finish what they have; the second time they are cut off."""
        self._stopping = True
        for member in self._members:
            member.terminate()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, lambda *_: self._stop()) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
