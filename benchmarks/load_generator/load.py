"""A load generator with low and reported CPU cost: keep-alive connections, prepared bytes, the
httptools parser.

`run_load` runs it in a process of its own, so that it does not compete with the caller for the GIL.

Closed loop: every connection sends its next request after the response, so latency counts from
sending. How the service fares when clients do not slow down is measured by many of them
(`benchmarks.reliability.storm`).

    start             begin = start + warmup_s         end: after `seconds`      at most 40 s
    |-- not counted ---|-- counted: responses in here --|-- waits for the rest ---|
"""

import asyncio
import contextlib
import gc
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Final

import uvloop

from benchmarks.harness.common import Json, latency, median_of
from benchmarks.harness.processes import HOST, ServerFailed, ServerProcess, cpu_seconds
from benchmarks.load_generator.fetch import Connection

_GRACE_S = 40.0  # for the first response, and for those that are missing at the end
_RETRY_S = 0.05  # pause before a connection that was not accepted is opened again
SHOWN: Final = ("p50_ms", "p99_ms", "p999_ms")  # percentiles of summaries
_SAMPLE = 300  # characters of the body that is kept for each status that is not 2xx


def run_load(
    server: ServerProcess,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    **changes: Any,
) -> Json:
    """Measure a load of a server, with its CPU time, from a process of its own; `ServerFailed`
    without any 2xx. ``changes`` are other fields of `Load`.
    """
    given = {"requests": requests, "connections": connections, "seconds": seconds, **changes}
    # a collection of garbage would count as latency
    with ProcessPoolExecutor(1, get_context("spawn"), gc.disable) as pool:
        result = pool.submit(run, port=server.port, server_pid=server.pid, **given).result()
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
        **{name: f"ok.{name}" for name in SHOWN},
        "server_core_ms": "server_core_ms_per_request",
        "client_core_ms": "client_core_ms_per_request",
    }
    return {name: median_of(rounds, of) for name, of in figures.items()} | {
        "failures": sum(map(failures, rounds))
    }


def run(**load: Any) -> Json:
    """Run a `Load` of these fields in this process, on an event loop of its own; returns the
    report.
    """
    return uvloop.run(Load(**load).run())


@dataclass(kw_only=True)
class Load:
    """One run of the generator, on the running event loop."""

    port: int
    server_pid: int  # whose CPU time, with its descendants, is reported too
    requests: Sequence[bytes]  # whole HTTP/1.1 requests, sent round robin
    connections: int  # keep-alive connections, each with one request in flight
    seconds: float  # time of measuring after ``warmup_s``, and until one response was counted
    warmup_s: float = 0.5  # at most half of ``seconds``
    pause_s: float = 0.0  # a client waits a random time of up to so long after each response
    latencies: dict[int, list[float]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    _happened: asyncio.Event = field(default_factory=asyncio.Event)
    _begin: float = math.inf
    _end: float = math.inf

    async def run(self) -> Json:
        """Send the load; returns the report."""
        self._turns = itertools.cycle(self.requests)
        self._random = random.Random(0)
        connections = await asyncio.gather(*(self._connect() for _ in range(self.connections)))
        self._begin = time.perf_counter() + min(self.warmup_s, self.seconds / 2)
        clients = [asyncio.create_task(self._client(each)) for each in connections]
        await asyncio.sleep(self._begin - time.perf_counter())
        before = self._cpu_seconds()
        await asyncio.sleep(self._begin + self.seconds - time.perf_counter())
        with contextlib.suppress(TimeoutError):  # without any response it is no measurement
            await asyncio.wait_for(self._happened.wait(), _GRACE_S)
        self._end = time.perf_counter()
        after = self._cpu_seconds()
        with contextlib.suppress(TimeoutError):  # it cancels the clients that still wait
            await asyncio.wait_for(asyncio.gather(*clients), _GRACE_S)
        count = max(1, sum(map(len, self.latencies.values())))
        own_ms, server_ms = ((b - a) * 1e3 / count for a, b in zip(before, after, strict=True))
        return self._report() | {
            "unanswered": sum(client.cancelled() for client in clients),
            "client_core_ms_per_request": own_ms,
            "server_core_ms_per_request": server_ms,
        }

    def _cpu_seconds(self) -> tuple[float, float]:
        """Of this process, and of the server."""
        return time.process_time(), cpu_seconds(self.server_pid)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, HOST, self.port))[1]

    async def _client(self, connection: Connection) -> None:
        """Send requests one after another until the end, on a new connection where it must be."""
        try:
            while (due := time.perf_counter()) < self._end:
                data = next(self._turns)
                status = 0
                connection.heard = False
                # A server may close an idle connection before it reads a request: clients send it
                # again.
                while not (status or connection.heard):
                    if not connection.is_open:
                        connection = await self._reconnect()
                    self.sent += 1
                    status = await connection.send(data)
                self._note(status, due, connection)
                if self.pause_s:
                    await asyncio.sleep(self._random.uniform(0, self.pause_s))
        finally:
            connection.transport.close()

    async def _reconnect(self) -> Connection:
        while True:
            try:
                return await self._connect()
            except OSError:
                self.errors["connect"] += 1
                self._happened.set()
                await asyncio.sleep(_RETRY_S)

    def _note(self, status: int, due: float, connection: Connection) -> None:
        now = time.perf_counter()
        if not status:
            self.errors[connection.error] += 1
            self._happened.set()
        elif self._begin <= now < self._end:
            self.latencies.setdefault(status, []).append(now - due)
            self._happened.set()
            if status >= 300:
                body = connection.body[:_SAMPLE].decode("utf-8", "replace")
                self.samples.setdefault(str(status), body)

    def _report(self) -> Json:
        seconds = self._end - self._begin
        good = (each for status, each in self.latencies.items() if status < 300)
        ok = latency([*itertools.chain(*good)])
        return {
            "seconds": seconds,
            "ok_per_s": ok["count"] / seconds,
            "ok": ok,
            "statuses": {
                str(status): latency(each) for status, each in sorted(self.latencies.items())
            },
            "errors": dict(self.errors),
            "sent": self.sent,
            "samples": self.samples,
        }
