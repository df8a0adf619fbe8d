"""The closed and the open loop of the load generator: connections and statistics."""

import asyncio
import contextlib
import itertools
import math
import random
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import cast

import httptools
import numpy as np

from benchmarks.harness.common import Json, latency, rounded
from benchmarks.harness.processes import cpu_seconds
from benchmarks.load_generator.spec import Spec

_TIMER_S = 0.001  # uvloop's resolution; anything shorter would be a busy loop
_RETRY_S = 0.05  # pause before a refused connection is opened again
_SAMPLE = 300  # characters of the body that is kept for each status that is not 2xx


@dataclass(slots=True)
class LoadStats:
    """The answers of a run. Latencies are of requests due (open loop) or answered (closed loop) while measuring."""

    latencies: dict[int, "array[float]"] = field(default_factory=dict)
    lateness: "array[float]" = field(default_factory=lambda: array("d"))
    completed: Counter[int] = field(default_factory=Counter)  # answers while measuring, by status
    errors: Counter[str] = field(default_factory=Counter)
    samples: dict[int, str] = field(default_factory=dict)
    body_bytes: int = 0
    sent: int = 0
    resent: int = 0


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight; ``due`` is the time to send it."""

    __slots__ = ("_load", "_parser", "_transport", "body", "busy", "due", "heard", "index", "size")

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.busy = self.heard = False
        self.due = 0.0
        self.index = 0
        self.size = 0
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.ready(self)

    def send(self, data: bytes, due: float, index: int) -> None:
        self.busy, self.heard, self.due, self.index, self.size, self.body = True, False, due, index, 0, b""
        assert self._transport is not None
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._load.error("not_http")
            self.close()

    def on_body(self, body: bytes) -> None:
        self.size += len(body)
        if len(self.body) < _SAMPLE:
            self.body += body[:_SAMPLE]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the answer follows
            return
        self.busy = False
        keep = self._parser.should_keep_alive()
        self._load.answered(self, status, keep)
        if not keep:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Load:
    """One run of the generator, on the running event loop."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.stats = spec, LoadStats()
        self._random = random.Random(spec.seed)
        self._next_request = itertools.cycle(range(len(spec.requests)))
        self._open: set[_Connection] = set()
        self._free: list[_Connection] = []  # last in, first out: the server may close the ones at the bottom
        self._waiting: deque[tuple[float, int]] = deque()  # due, request
        self._tasks: set[asyncio.Task[None]] = set()
        self._over, self._happened = asyncio.Event(), asyncio.Event()
        self._started = self._ended = False
        self._begin = self._end = math.inf
        self._cpu = self._server_cpu = 0.0
        self._reconnects = 0

    async def run(self) -> Json:
        """Send the load of the spec; returns the report."""
        loop, spec = asyncio.get_running_loop(), self.spec
        await asyncio.gather(*(self._connect() for _ in range(spec.connections)))
        start = time.perf_counter()
        self._begin = start + spec.warmup_s
        planned = self._begin + spec.seconds
        self._started = True
        if spec.rate is None:
            while self._free:
                self._use(self._free.pop())
        else:
            self._end = planned
            self._due = deque(arrivals(start, planned, spec.rate, spec.seed))
            self._tick()
        await asyncio.sleep(self._begin - time.perf_counter())
        self._clock(-1)
        await asyncio.sleep(planned - time.perf_counter())
        if spec.rate is None:
            await self._first_answer()
            self._end = time.perf_counter()
        self._clock(+1)
        self._ended = True
        self._settle()
        handle = loop.call_later(spec.grace_s, self._over.set)
        await self._over.wait()
        handle.cancel()
        for task in self._tasks:
            task.cancel()
        report = self._report()
        for connection in list(self._open):
            connection.close()
        return report

    async def _first_answer(self) -> None:
        """Wait for one answer or error: a closed loop without any is no measurement."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._happened.wait(), self.spec.grace_s)

    def error(self, kind: str) -> None:
        """Count an error."""
        self.stats.errors[kind] += 1
        self._happened.set()

    def _clock(self, sign: int) -> None:
        self._cpu += sign * time.process_time()
        if self.spec.server_pid is not None:
            self._server_cpu += sign * cpu_seconds(self.spec.server_pid)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended or self._waiting:
            try:
                await loop.create_connection(lambda: _Connection(self), self.spec.host, self.spec.port)
            except OSError:
                self.error("connect")
                if not self._started:  # there is no server
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def ready(self, connection: _Connection) -> None:
        """Use a new connection."""
        self._open.add(connection)
        self._use(connection)

    def answered(self, connection: _Connection, status: int, keep: bool) -> None:
        now, stats = time.perf_counter(), self.stats
        within = self._begin <= now < self._end
        if within:
            stats.completed[status] += 1
            self._happened.set()
            stats.body_bytes += connection.size
        counted = within if self.spec.rate is None else self._begin <= connection.due < self._end
        if counted:
            stats.latencies.setdefault(status, array("d")).append(now - connection.due)
            if status >= 300:
                stats.samples.setdefault(status, connection.body[:_SAMPLE].decode("utf-8", "replace"))
        if keep:
            self._use(connection)
        self._settle()

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if connection.busy:
            connection.busy = False
            if connection.heard:
                self.error("cut_off")
            else:  # the server closed an idle connection before it read the request: clients send it again
                self.stats.resent += 1
                self._waiting.appendleft((connection.due, connection.index))
        if not self._ended or self._waiting:
            self._reconnects += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._settle()

    def _use(self, connection: _Connection) -> None:
        """Send the next waiting request on a free connection."""
        now = time.perf_counter()
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        elif not (self._started and self.spec.rate is None and now < self._end):
            self._free.append(connection)
        elif self.spec.pause_s:
            self._pause(connection)
        else:
            self._send(connection, now, next(self._next_request))

    def _pause(self, connection: _Connection) -> None:
        """Send the connection's next request after a random pause."""

        def send() -> None:
            if connection in self._open and not self._ended:
                self._send(connection, time.perf_counter(), next(self._next_request))

        asyncio.get_running_loop().call_later(self._random.uniform(0, self.spec.pause_s), send)

    def _send(self, connection: _Connection, due: float, index: int) -> None:
        stats = self.stats
        stats.sent += 1
        if self.spec.rate is not None and self._begin <= due < self._end:
            stats.lateness.append(time.perf_counter() - due)
        connection.send(self.spec.requests[index], due, index)

    def _tick(self) -> None:
        """Send the requests that are due, and schedule the next tick."""
        now, due = time.perf_counter(), self._due
        while due and due[0] <= now:
            item = due.popleft(), next(self._next_request)
            if self._free:
                self._send(self._free.pop(), *item)
            else:
                self._waiting.append(item)
        if due:
            asyncio.get_running_loop().call_later(max(_TIMER_S, due[0] - now), self._tick)

    def _settle(self) -> None:
        if self._ended and not self._waiting and not any(connection.busy for connection in self._open):
            self._over.set()

    def _report(self) -> Json:
        spec, stats = self.spec, self.stats
        completed, seconds = sum(stats.completed.values()), self._end - self._begin

        def of(*statuses: int) -> list[float]:
            return [value for status in statuses for value in stats.latencies.get(status, ())]

        report: Json = {
            "loop": "closed" if spec.rate is None else "open",
            "connections": spec.connections,
            "seconds": rounded(seconds),
            "rate": spec.rate,
            "requests_per_s": rounded(completed / seconds),
            "ok_per_s": rounded(sum(n for status, n in stats.completed.items() if status < 300) / seconds),
            "ok": latency(of(*(status for status in stats.latencies if status < 300))),
            "refused": latency(of(429, 503)),
            "statuses": {str(status): latency(stats.latencies[status]) for status in sorted(stats.latencies)},
            "errors": dict(stats.errors),
            "unanswered": len(self._waiting) + sum(connection.busy for connection in self._open),
            "unsent": len(self._waiting),  # those of the unanswered for which no connection became free
            "sent": stats.sent,
            "resent": stats.resent,
            "reconnects": self._reconnects,
            "body_bytes": stats.body_bytes,
            "samples": {str(status): text for status, text in stats.samples.items()},
            "client_core_ms_per_request": rounded(self._cpu * 1e3 / max(1, completed)),
        }
        if spec.rate is not None:
            report["lateness"] = latency(stats.lateness)
        if spec.server_pid is not None:
            report["server_core_ms_per_request"] = rounded(self._server_cpu * 1e3 / max(1, completed))
        return report


def arrivals(start: float, end: float, rate: float, seed: int) -> list[float]:
    """The times of a Poisson process with ``rate`` events per second."""
    rng = np.random.default_rng(seed)
    expected = (end - start) * rate
    gaps = rng.exponential(1 / rate, round(expected + 10 * expected**0.5 + 10))
    times = start + np.cumsum(gaps)
    return [float(time) for time in times[times < end]]
