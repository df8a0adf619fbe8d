"""Several processes on one port (`IGN_WORKERS`): a parent that starts them, replaces one that dies, and stops them.

Each has its own model, queue and batches; the kernel deals connections out to them. What an operator limits is divided
among them, and `/metrics` adds them up. For CPUs only: on a GPU a second process would split the batches, not the work.
"""

import contextlib
import dataclasses
import logging
import math
import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError
from service.environment import available_cpus
from service.settings import Settings, share_metrics

Work = Callable[[Settings, Connection], None]
"""What a process does. It listens once it has been told to, and says `LISTENING`; it says `READY` once it could serve;
or why it refuses to start, as UTF-8, and ends. It stops when the connection closes."""
LISTEN: Final = b"\x01"
LISTENING: Final = b"\x02"
READY: Final = b"\x03"

_LOG = logging.getLogger("service")
_TRIES: Final = 5
_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 30.0
_LASTING_S: Final = 60.0  # for so long it has served well


def say(connection: Connection, what: bytes) -> None:
    """Send it; that nobody is there any more is noticed elsewhere."""
    with contextlib.suppress(OSError):
        connection.send_bytes(what)


def share_of(settings: Settings) -> Settings:
    """One process's part of the operator's limits; every process can still take a full request."""

    def part(limit: int, least: int = 1) -> int:
        return max(least, math.ceil(limit / settings.workers))

    return settings.replace(
        threads=max(1, (settings.threads or available_cpus()) // settings.workers),
        queue_rows=part(settings.queue_rows, settings.max_images),
        max_inflight_requests=part(settings.max_inflight_requests),
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
        StartupError: a process refused to start, or they keep dying before any can serve; the others have been stopped.
    """
    folder = Path(tempfile.mkdtemp(prefix="ign-metrics-"))
    share_metrics(folder)
    try:
        return _Crew(share_of(settings), work, listening, lambda pid: forget(pid, folder)).run(settings.workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass(eq=False)
class _Member:
    process: SpawnProcess
    line: Connection
    deaths: int  # of those in its place, one after the other, that did not last
    heard: bool = True  # until it has closed its end
    listens: bool = False  # or has been told to
    ready_at: float | None = None

    def hear(self) -> Iterator[bytes]:
        """What it has said since."""
        try:
            while self.heard and self.line.poll():
                yield self.line.recv_bytes()
        except (EOFError, OSError):
            self.heard = False

    def lasted(self) -> bool:
        return self.ready_at is not None and time.monotonic() - self.ready_at >= _LASTING_S


def _next_to_listen(members: Sequence[_Member]) -> list[_Member]:
    """Those to be told now. The kernel deals connections to all that listen, so none joins while one of them loads.

    Args:
        members: oldest first. If none of them listens and none is ready, the oldest opens the port, to say so.
    """
    listening = [member for member in members if member.listens]
    if any(member.ready_at is None for member in listening):
        return []
    ready = [member for member in members if member.ready_at is not None and not member.listens]
    return ready if ready or listening else list(members[:1])


class _Crew:
    def __init__(
        self, settings: Settings, work: Work, listening: Callable[[], None], ended: Callable[[int], None]
    ) -> None:
        self._settings, self._work, self._ended = settings, work, ended
        self._listening: Callable[[], None] | None = listening
        self._context = multiprocessing.get_context("spawn")
        self._members: list[_Member] = []
        self._vacant: list[tuple[float, int]] = []  # when to start the next, and after how many deaths
        self._stopping = False
        self._woken, self._waker = self._context.Pipe(duplex=False)
        self._status = 0
        self._refusal: str | None = None

    def run(self, count: int) -> int:
        with self._woken, self._waker, self._signals():
            for _ in range(count):
                self._start(0)
            while self._members or (self._vacant and not self._stopping):
                self._wait()
                for member in self._members:
                    self._hear(member)
                for member in [member for member in self._members if not member.process.is_alive()]:
                    self._bury(member)
                self._fill()
                self._deal()
        if self._refusal is not None:
            raise StartupError(self._refusal)
        return self._status

    def _wait(self) -> None:
        """Until a process says something or ends, the next is due, or a signal has come."""
        sentinels = [member.process.sentinel for member in self._members]
        lines = [member.line for member in self._members if member.heard]
        if self._stopping:
            wait([*sentinels, *lines])
        else:
            due = min((due for due, _ in self._vacant), default=None)
            wait([*sentinels, *lines, self._woken], None if due is None else max(0.0, due - time.monotonic()))

    def _start(self, deaths: int) -> None:
        # When this process is gone, however it went, the other end reads end-of-file.
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=self._work, args=(self._settings, theirs), name="ign-worker")
        self._members.append(_Member(process, ours, deaths))
        self._deal()  # before it starts: the one that opens the port need not wait for the word
        process.start()
        theirs.close()
        if self._stopping:  # a signal came in between
            process.terminate()

    def _deal(self) -> None:
        if self._stopping:
            return
        for member in _next_to_listen(self._members):
            member.listens = True
            say(member.line, LISTEN)

    def _hear(self, member: _Member) -> None:
        for said in member.hear():
            if said == READY:
                member.ready_at = time.monotonic()
            elif said != LISTENING:
                self._refusal = self._refusal or said.decode()
            elif self._listening is not None:
                self._listening()
                self._listening = None

    def _bury(self, member: _Member) -> None:
        member.process.join()
        self._members.remove(member)
        self._hear(member)
        member.line.close()
        self._ended(member.process.pid or 0)
        status = member.process.exitcode or 0
        if not self._stopping:
            self._replace(member, status)
        elif status != -signal.SIGTERM:  # of which one dies that has just been started
            self._status = self._status or abs(status)

    def _replace(self, member: _Member, status: int) -> None:
        deaths = 1 if member.lasted() else member.deaths + 1
        if deaths >= _TRIES and all(one.ready_at is None for one in (member, *self._members)):
            self._refusal = self._refusal or (
                f"{deaths} processes in a row did not last, the last one ended with status {status} before it was ready"
            )
        if self._refusal is not None:
            self._stop()
            return
        pause = 0.0 if deaths == 1 else min(_MAX_PAUSE_S, _PAUSE_S * 2 ** min(deaths - 2, 10))
        when = f" in {pause:g} s" if pause else ""
        _LOG.error("process %s ended with status %s; another takes its place%s", member.process.pid, status, when)
        self._vacant.append((time.monotonic() + pause, deaths))

    def _fill(self) -> None:
        now = time.monotonic()
        for place in [place for place in self._vacant if place[0] <= now]:
            self._vacant.remove(place)
            if not self._stopping:
                self._start(place[1])

    def _stop(self) -> None:
        """The first time they finish what they have; the second time they are cut off."""
        if not self._stopping:
            self._stopping = True
            self._waker.send_bytes(b"")
        for member in self._members:
            if member.process.pid is not None:
                member.process.terminate()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, lambda *_: self._stop()) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
