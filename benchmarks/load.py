"""A load generator whose own cost is small, and stated: keep-alive connections, prepared bytes, httptools' parser.

    python -m benchmarks.load SPEC.json        # or - for stdin; prints a report

The file holds the fields of `Spec`; requests are whole HTTP/1.1 requests, in base64. `measure` runs it in a process
of its own, so that its work does not stand in the way of whoever measures.

- Closed loop: every connection sends its next request once it has its answer. Latency counts from sending.
- Open loop (`rate`): requests are due at random times (Poisson), whether the server keeps up or not. Latency counts
  from the time a request was **due**, so a stall counts against every request that was due meanwhile. A request that
  finds no free connection waits for one, and its wait counts. Timers have a resolution of a millisecond;
  `lateness` is how much later than due requests were sent, and is part of the latencies.
"""

import asyncio
import base64
import gc
import itertools
import json
import math
import subprocess
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools
import numpy as np
import uvloop

from benchmarks.common import Json, latency, rounded
from benchmarks.processes import HOST, ROOT, cpu_seconds

_TIMER_S = 0.001  # uvloop's resolution; anything shorter would be a busy loop
_RETRY_S = 0.05  # before a refused connection is tried again
_SAMPLE = 300  # characters of one body that is kept of every status that is not 2xx


def request(
    path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST", host: str = HOST
) -> bytes:
    """A whole HTTP/1.1 request."""
    fields = {"Host": host, **(headers or {})}
    if body or method == "POST":
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to send.

    Args:
        host, port: the server.
        requests: whole HTTP/1.1 requests, sent in turn; the first by the first connection, and so on.
        connections: kept open all the time; of an open loop, also the most requests in flight.
        seconds: of measuring, after ``warmup_s``.
        warmup_s: seconds before that, in which everything is done alike and nothing is counted.
        rate: requests per second of an open loop; None for a closed one.
        seed: of the times at which an open loop's requests are due.
        grace_s: seconds to wait for answers at the end.
        server_pid: a process of this machine whose CPU time, with its descendants', is stated too.
    """

    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    host: str = HOST
    warmup_s: float = 0.5
    rate: float | None = None
    seed: int = 0
    grace_s: float = 40.0
    server_pid: int | None = None

    def __post_init__(self) -> None:
        if not self.requests or self.connections < 1 or self.seconds <= 0 or self.warmup_s < 0:
            raise ValueError("needs requests, at least one connection, and time")
        if self.rate is not None and self.rate <= 0:
            raise ValueError("rate must be above 0")

    def to_json(self) -> str:
        """As the command line takes it."""
        return json.dumps(asdict(self) | {"requests": [base64.b64encode(each).decode() for each in self.requests]})

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: it did not.
        """
        fields = json.loads(text)
        return cls(**fields | {"requests": [base64.b64decode(each) for each in fields["requests"]]})


def measure(spec: Spec) -> Json:
    """Run the load in a process of its own; returns its report.

    Raises:
        RuntimeError: the generator failed; the text says what it wrote.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", "-"],
        input=spec.to_json(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed:\n{done.stderr[-2000:]}")
    return cast(Json, json.loads(done.stdout))


def run(spec: Spec) -> Json:
    """Run the load in this process, on an event loop of its own; returns the report."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Load(spec).run())


@dataclass(slots=True)
class _Books:
    """What was answered. Latencies are of requests due (open loop) or answered (closed loop) while it was measured."""

    latencies: dict[int, "array[float]"] = field(default_factory=dict)
    lateness: "array[float]" = field(default_factory=lambda: array("d"))
    completed: Counter[int] = field(default_factory=Counter)  # answers that came while it was measured, by status
    errors: Counter[str] = field(default_factory=Counter)
    samples: dict[int, str] = field(default_factory=dict)
    body_bytes: int = 0
    sent: int = 0
    resent: int = 0


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight: ``due`` is when that should have been sent."""

    __slots__ = ("_load", "_parser", "_transport", "body", "busy", "due", "heard", "index", "size")

    def __init__(self, load: "_Load") -> None:
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
            self._load.books.errors["not_http"] += 1
            self.close()

    def on_body(self, body: bytes) -> None:
        self.size += len(body)
        if len(self.body) < _SAMPLE:
            self.body += body[:_SAMPLE]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the answer is yet to come
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


class _Load:
    def __init__(self, spec: Spec) -> None:
        self.spec, self.books = spec, _Books()
        self._next_request = itertools.cycle(range(len(spec.requests)))
        self._open: set[_Connection] = set()
        self._free: list[_Connection] = []  # last in, first out: those at the bottom may be closed by the server
        self._waiting: deque[tuple[float, int]] = deque()  # due, request
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._started = self._ended = False
        self._begin = self._end = math.inf
        self._cpu = self._server_cpu = 0.0
        self._reconnects = 0

    async def run(self) -> Json:
        loop, spec = asyncio.get_running_loop(), self.spec
        await asyncio.gather(*(self._connect() for _ in range(spec.connections)))
        start = time.perf_counter()
        self._begin = start + spec.warmup_s
        self._end = self._begin + spec.seconds
        self._started = True
        if spec.rate is None:
            while self._free:
                self._send(self._free.pop(), time.perf_counter(), next(self._next_request))
        else:
            arrivals = _arrivals(start, self._end, spec.rate, spec.seed)
            self._due = deque(arrivals)
            self._tick()
        await asyncio.sleep(self._begin - time.perf_counter())
        self._clock(-1)
        await asyncio.sleep(self._end - time.perf_counter())
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
                self.books.errors["connect"] += 1
                if not self._started:  # there is no server
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def ready(self, connection: _Connection) -> None:
        """A connection may be used."""
        self._open.add(connection)
        self._use(connection)

    def answered(self, connection: _Connection, status: int, keep: bool) -> None:
        now, books = time.perf_counter(), self.books
        within = self._begin <= now < self._end
        if within:
            books.completed[status] += 1
            books.body_bytes += connection.size
        counted = within if self.spec.rate is None else self._begin <= connection.due < self._end
        if counted:
            books.latencies.setdefault(status, array("d")).append(now - connection.due)
            if status >= 300:
                books.samples.setdefault(status, connection.body[:_SAMPLE].decode("utf-8", "replace"))
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
                self.books.errors["cut_off"] += 1
            else:  # the server closed an idle connection as the request was on its way: any client sends it again
                self.books.resent += 1
                self._waiting.appendleft((connection.due, connection.index))
        if not self._ended or self._waiting:
            self._reconnects += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._settle()

    def _use(self, connection: _Connection) -> None:
        """Give a free connection what waits for one."""
        now = time.perf_counter()
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        elif self._started and self.spec.rate is None and now < self._end:
            self._send(connection, now, next(self._next_request))
        else:
            self._free.append(connection)

    def _send(self, connection: _Connection, due: float, index: int) -> None:
        books = self.books
        books.sent += 1
        if self.spec.rate is not None and self._begin <= due < self._end:
            books.lateness.append(time.perf_counter() - due)
        connection.send(self.spec.requests[index], due, index)

    def _tick(self) -> None:
        """Send what is due by now; come back for the next."""
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
        spec, books = self.spec, self.books
        completed = sum(books.completed.values())

        def of(*statuses: int) -> list[float]:
            return [value for status in statuses for value in books.latencies.get(status, ())]

        found: Json = {
            "loop": "closed" if spec.rate is None else "open",
            "connections": spec.connections,
            "seconds": spec.seconds,
            "rate": spec.rate,
            "requests_per_s": rounded(completed / spec.seconds),
            "ok_per_s": rounded(sum(n for status, n in books.completed.items() if status < 300) / spec.seconds),
            "ok": latency(of(*(status for status in books.latencies if status < 300))),
            "refused": latency(of(429, 503)),
            "statuses": {str(status): latency(books.latencies[status]) for status in sorted(books.latencies)},
            "errors": dict(books.errors),
            "unanswered": len(self._waiting) + sum(connection.busy for connection in self._open),
            "sent": books.sent,
            "resent": books.resent,
            "reconnects": self._reconnects,
            "body_bytes": books.body_bytes,
            "samples": {str(status): text for status, text in books.samples.items()},
            "client_core_ms_per_request": rounded(self._cpu * 1e3 / max(1, completed)),
        }
        if spec.rate is not None:
            found["lateness"] = latency(books.lateness)
        if spec.server_pid is not None:
            found["server_core_ms_per_request"] = rounded(self._server_cpu * 1e3 / max(1, completed))
        return found


def _arrivals(start: float, end: float, rate: float, seed: int) -> list[float]:
    """Times of a Poisson process."""
    rng = np.random.default_rng(seed)
    expected = (end - start) * rate
    gaps = rng.exponential(1 / rate, round(expected + 10 * expected**0.5 + 10))
    times = start + np.cumsum(gaps)
    return [float(time) for time in times[times < end]]


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m benchmarks.load SPEC.json (or -)", file=sys.stderr)
        return 2
    try:
        text = sys.stdin.read() if argv[0] == "-" else Path(argv[0]).read_text(encoding="utf-8")
        spec = Spec.from_json(text)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        print(f"error: {argv[0]}: {exc}", file=sys.stderr)
        return 2
    gc.disable()  # it makes no cycles worth a pause in the middle of a measurement
    report: Any = run(spec)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
