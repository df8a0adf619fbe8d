"""A load generator with low and reported CPU cost: keep-alive connections, prepared bytes, the
httptools parser.

`measure` runs it in a process of its own (`python -m benchmarks.load_generator.load`), so that it
does not compete with the caller for the GIL.

Closed loop: every connection sends its next request after the response, so latency counts from
sending. How the service fares when clients do not slow down is measured by many of them
(`benchmarks.reliability.storm`).

    start             begin = start + warmup_s         end: after `seconds`       at most grace_s
    |-- not counted ---|-- counted: responses in here --|-- waits for the rest ---|
"""

import asyncio
import contextlib
import gc
import itertools
import json
import math
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httptools
import uvloop

from benchmarks.harness.common import Json, latency, median_of, rounded
from benchmarks.harness.processes import HOST, ROOT, ServerFailed, ServerProcess, cpu_seconds

_RETRY_S = 0.05  # pause before a connection that was not accepted is opened again
_SAMPLE = 300  # characters of the body that is kept for each status that is not 2xx


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A load."""

    port: int
    requests: Sequence[bytes]  # whole HTTP/1.1 requests, sent round robin
    connections: int  # keep-alive connections, each with one request in flight
    seconds: float  # time of measuring after ``warmup_s``, and until one response was counted
    warmup_s: float = 0.5
    grace_s: float = 40.0
    pause_s: float = 0.0  # a client waits a random time of up to so long after each response
    # a local process whose CPU time, with its descendants, is reported too
    server_pid: int | None = None


def measure(spec: Spec) -> Json:
    """Run the load in a process of its own; returns its report, or raises RuntimeError with its
    output.
    """
    command = [sys.executable, "-m", "benchmarks.load_generator.load"]
    done = subprocess.run(
        command, input=pickle.dumps(spec), capture_output=True, cwd=ROOT, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed:\n{done.stderr.decode()[-2000:]}")
    return cast(Json, json.loads(done.stdout))


def run_load(
    server: ServerProcess,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    **changes: Any,
) -> Json:
    """Measure a load of a server, with its CPU time; `ServerFailed` without any 2xx."""
    given = {"warmup_s": min(0.5, seconds / 2), "server_pid": server.pid} | changes
    spec = Spec(
        port=server.port, requests=requests, connections=connections, seconds=seconds, **given
    )
    result = measure(spec)
    if not result["ok"]["count"]:
        raise ServerFailed(
            f"no request was answered with 2xx: {result['samples']} {result['errors']}"
        )
    return result


def failures(result: Json, allowed: Sequence[str] = ("200",)) -> int:
    """The requests of a report that got no response, or one of another status."""
    other = sum(
        each["count"] for status, each in result["statuses"].items() if status not in allowed
    )
    return int(other + result["unanswered"] + sum(result["errors"].values()))


def summary(rounds: Sequence[Json]) -> Json:
    """The medians of a load over its rounds: rate, latency, and CPU time by request; and all
    failures.
    """
    figures = {
        "requests_per_s": "ok_per_s",
        **{name: f"ok.{name}" for name in ("p50_ms", "p99_ms", "p999_ms")},
    }
    figures |= {f"{side}_core_ms": f"{side}_core_ms_per_request" for side in ("server", "client")}
    return {name: median_of(rounds, of) for name, of in figures.items()} | {
        "failures": sum(map(failures, rounds))
    }


def run(spec: Spec) -> Json:
    """Run the load in this process, on an event loop of its own; returns the report."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Load(spec).run())


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight; ``due`` is the time when it was
    sent first.
    """

    __slots__ = ("_load", "_parser", "_transport", "body", "busy", "due", "heard", "index")

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self.busy = self.heard = False
        self.due = 0.0
        self.index = 0
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.ready(self)

    def send(self, data: bytes, due: float, index: int) -> None:
        self.busy = True
        self.heard = False
        self.due = due
        self.index = index
        self.body = b""
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._load.error("not_http")
            self.close()

    def on_body(self, body: bytes) -> None:
        if len(self.body) < _SAMPLE:
            self.body += body[:_SAMPLE]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the response follows
            return
        self.busy = False
        keep = self._parser.should_keep_alive()
        self._load.answered(self, status, keep)
        if not keep:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)

    def close(self) -> None:
        self._transport.close()


class Load:
    """One run of the generator, on the running event loop."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.latencies: dict[int, list[float]] = {}
        self.completed, self.errors = Counter[int](), Counter[str]()
        self.samples: dict[str, str] = {}
        self.sent = self.resent = self.reconnects = 0
        self._random = random.Random(0)
        self._next_request = itertools.cycle(range(len(spec.requests)))
        self._open: set[_Connection] = set()
        self._free: list[
            _Connection
        ] = []  # last in, first out: the server may close the ones at the bottom
        self._waiting: list[tuple[float, int]] = []  # start and number of requests to send again
        self._tasks: set[asyncio.Task[None]] = set()
        self._over, self._happened = asyncio.Event(), asyncio.Event()
        self._started = self._ended = False
        self._begin = self._end = math.inf
        self._cpu = self._server_cpu = 0.0

    async def run(self) -> Json:
        """Send the load of the spec; returns the report."""
        spec = self.spec
        await asyncio.gather(*(self._connect() for _ in range(spec.connections)))
        start = time.perf_counter()
        self._begin = start + spec.warmup_s
        planned = self._begin + spec.seconds
        self._started = True
        while self._free:
            self._use(self._free.pop())
        await asyncio.sleep(self._begin - time.perf_counter())
        self._clock(-1)
        await asyncio.sleep(planned - time.perf_counter())
        with contextlib.suppress(TimeoutError):  # without any response it is no measurement
            await asyncio.wait_for(self._happened.wait(), spec.grace_s)
        self._end = time.perf_counter()
        self._clock(+1)
        self._ended = True
        self._settle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), spec.grace_s)
        for task in self._tasks:
            task.cancel()
        report = self._report()
        for connection in list(self._open):
            connection.close()
        await asyncio.sleep(0)
        return report

    def error(self, kind: str) -> None:
        self.errors[kind] += 1
        self._happened.set()

    def _clock(self, sign: int) -> None:
        self._cpu += sign * time.process_time()
        if self.spec.server_pid is not None:
            self._server_cpu += sign * cpu_seconds(self.spec.server_pid)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended or self._waiting:
            try:
                await loop.create_connection(lambda: _Connection(self), HOST, self.spec.port)
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
        now = time.perf_counter()
        if self._begin <= now < self._end:
            self.completed[status] += 1
            self._happened.set()
            self.latencies.setdefault(status, []).append(now - connection.due)
            if status >= 300:
                self.samples.setdefault(
                    str(status), connection.body[:_SAMPLE].decode("utf-8", "replace")
                )
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
            # the server closed an idle connection before it read the request: clients send it again
            else:
                self.resent += 1
                self._waiting.append((connection.due, connection.index))
        if not self._ended or self._waiting:
            self.reconnects += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._settle()

    def _use(self, connection: _Connection) -> None:
        """Send the next waiting request on a free connection."""
        now = time.perf_counter()
        if self._waiting:
            self._send(connection, *self._waiting.pop())
        elif not (self._started and now < self._end):
            self._free.append(connection)
        elif self.spec.pause_s:
            pause = self._random.uniform(0, self.spec.pause_s)
            asyncio.get_running_loop().call_later(pause, self._send_after_pause, connection)
        else:
            self._send(connection, now, next(self._next_request))

    def _send_after_pause(self, connection: _Connection) -> None:
        if connection in self._open and not self._ended:
            self._send(connection, time.perf_counter(), next(self._next_request))

    def _send(self, connection: _Connection, due: float, index: int) -> None:
        self.sent += 1
        connection.send(self.spec.requests[index], due, index)

    def _settle(self) -> None:
        if (
            self._ended
            and not self._waiting
            and not any(connection.busy for connection in self._open)
        ):
            self._over.set()

    def _report(self) -> Json:
        completed = self.completed.total()
        seconds = self._end - self._begin

        def of(statuses: Iterable[int]) -> Json:
            return latency(
                [value for status in statuses for value in self.latencies.get(status, ())]
            )

        return {
            "seconds": rounded(seconds),
            "requests_per_s": rounded(completed / seconds),
            "ok_per_s": rounded(
                sum(n for status, n in self.completed.items() if status < 300) / seconds
            ),
            "ok": of(status for status in self.latencies if status < 300),
            "rejected": of((429, 503)),
            "statuses": {str(status): of([status]) for status in sorted(self.latencies)},
            "errors": dict(self.errors),
            "unanswered": len(self._waiting) + sum(connection.busy for connection in self._open),
            "sent": self.sent,
            "resent": self.resent,
            "reconnects": self.reconnects,
            "samples": self.samples,
            "client_core_ms_per_request": rounded(self._cpu * 1e3 / max(1, completed)),
            "server_core_ms_per_request": rounded(self._server_cpu * 1e3 / max(1, completed)),
        }


if __name__ == "__main__":
    gc.disable()  # its pauses would count as latency
    print(json.dumps(run(pickle.load(sys.stdin.buffer))))
