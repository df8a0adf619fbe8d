"""What a good client notices while another one attacks, and how soon the service is as before.

    python -m benchmarks.reliability.attacks --results benchmarks/results/attacks.json
    python -m benchmarks.reliability.attacks NAME PORT SECONDS [CLIENTS] [SEED]     # only attacks

Attackers are a process of their own, so that they cannot delay good clients. Exits with status 0 if every target is
met, else with 1.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import numpy as np
import uvloop
from PIL import Image

from benchmarks.harness.common import Json, latency, percentile, rounded, run_benchmark, target
from benchmarks.harness.processes import HOST, ROOT, ServerProcess, memory_samples, raise_file_limit, rss_mib, service
from benchmarks.load_generator.fetch import ConnectionClosed, fetch
from benchmarks.load_generator.messages import encoded, get, post_form, upload
from benchmarks.load_generator.traffic import Rng, disconnecting, oversized, slow_body
from benchmarks.reliability.hostile_inputs import hostile
from benchmarks.reliability.soak import KnownAnswers, log_errors, right_answer

METHOD: Final = (
    "A service with the default settings for each attack. A good client asks for an image every 20 ms on a new "
    "connection, and /healthz every 100 ms: alone, during the attack, and after it. Attackers run at nice 10 on the "
    "same machine. p99 over alone compares the good client with itself. growth: of the largest resident memory over "
    "that before. normal after: seconds until ten answers in a row take at most five times the p99 alone"
)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PART: Final = 1 << 16
BODY: Final = 16 << 20
NICENESS: Final = 10  # attackers compete for the service, not for the cores of a shared machine


async def on_connections(count: int, talk: Talk, port: int, end: float, pause_s: float = 0.05) -> None:
    """Talk on ``count`` connections at once, again and again until ``end``."""

    async def again() -> None:
        while time.monotonic() < end:
            writer: asyncio.StreamWriter | None = None
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(end - time.monotonic()):
                    reader, writer = await asyncio.open_connection(HOST, port)
                    await talk(reader, writer)
            if writer is not None:
                writer.transport.abort()
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(again() for _ in range(count)))


def sending(start: bytes, part: bytes, pause_s: float = 0.0) -> Talk:
    """Send ``start``, then ``part`` without end, and read nothing."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for place in range(0, len(start), PART):
            writer.write(start[place : place + PART])
            await writer.drain()
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return talk


def waiting(*parts: bytes, seconds: float = 3600.0) -> Talk:
    """Send one of the parts in turn, and read until the service closes, or for so long."""
    turns = itertools.cycle(parts)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(turns))
        async with asyncio.timeout(seconds):
            while await reader.read(PART):
                pass

    return talk


def large_form() -> bytes:
    return post_form("/project", [("image", encoded(Image.new("RGBA", (4000, 4000)), compress_level=9))] * 64)


def empty_segments() -> bytes:
    """A JPEG of 12 MB."""
    return upload("/project", b"\xff\xd8" + b"\xff\xe1\x00\x02" * 3_000_000 + b"\xff\xd9", media="image/jpeg")


async def bad_clients(count: int, seed: int, port: int, end: float) -> None:
    """A quarter each is slow, disconnects, sends too much, or sends hostile requests, whatever the answers are."""
    makers = (slow_body, disconnecting, oversized, hostile)

    async def bad_client(rng: Rng, kind: int) -> None:
        while time.monotonic() < end:
            case = makers[kind % len(makers)](rng)
            with contextlib.suppress(OSError, ConnectionClosed):
                await fetch(port, case.data, leave_after_s=case.leave_after_s or 1.0)
            await asyncio.sleep(0.5)

    rngs = np.random.default_rng(seed).spawn(count)
    await asyncio.gather(*(bad_client(rng, kind) for kind, rng in enumerate(rngs)))


HEAD: Final = b"GET / HTTP/1.1\r\nHost: x\r\n"
HALF_A_BODY: Final = upload("/project", bytes(BODY))[: BODY // 2]
ATTACKS: Final[dict[str, Callable[[], Callable[[int, float], Coroutine[Any, Any, None]]]]] = {
    "endless header": lambda: partial(on_connections, 4, sending(HEAD + b"X-A: ", b"b" * PART)),
    "endless URL": lambda: partial(on_connections, 4, sending(b"GET /", b"b" * PART)),
    "pipelining": lambda: partial(on_connections, 4, sending(b"", get("/healthz") * 2000)),
    "3000 silent, half-headed": lambda: partial(on_connections, 3000, waiting(b"", HEAD), pause_s=1.0),
    "slow 16 MiB bodies": lambda: partial(on_connections, 100, sending(HALF_A_BODY, bytes(1024), 0.5), pause_s=5.0),
    "64 x 16 Mpx form": lambda: partial(on_connections, 2, waiting(large_form(), seconds=2.0)),
    "empty segments": lambda: partial(on_connections, 2, waiting(empty_segments(), seconds=2.0)),
}
BAD_CLIENTS: Final = "bad clients"
GIVE_UP_S: Final = 60.0
FACTOR: Final = 5
IN_A_ROW: Final = 10


def measure(options: argparse.Namespace) -> Json:
    lines = [one_attack(name, options.seconds) for name in options.attacks]
    targets = []
    for line in lines:
        name = line["attack"]
        targets += [
            target(f"{name}: growth of memory", line["growth_mib"], at_most=256.0, unit="MiB"),
            target(f"{name}: normal after", line["normal_after_s"], at_most=20.0, unit="s"),
            target(f"{name}: failed good requests, errors in the log", line["failed"], at_most=0),
        ]
        if not options.quick:  # which is too short to judge milliseconds
            targets += [
                target(f"{name}: p99 over alone", line["p99_over_alone"], at_most=FACTOR),
                target(f"{name}: /healthz p99", line["healthz_p99_ms"], at_most=250.0, unit="ms"),
            ]
    return {"targets": targets, "attacks": lines}


def one_attack(name: str, seconds: float) -> Json:
    """Run one attack against a service of its own."""
    with service({"IGN_ACCESS_LOG": "0"}) as server:
        before = rss_mib(server.pid)
        with memory_samples(server.pid, every_s=0.1) as samples:
            line = uvloop.run(beside(server, name, seconds))
        line["failed"] += len(log_errors(server))
    return line | {"growth_mib": rounded(max(value for _, value in samples) - before)}


async def beside(server: ServerProcess, name: str, seconds: float) -> Json:
    """The good client alone, beside the attack, and after it."""
    right = await right_answer(server.port)
    warm, alone, during, after = (KnownAnswers(right) for _ in range(4))
    for _ in range(20):
        await warm.ask(server.port)
    await ask_for(server, alone, seconds / 2)
    command = [sys.executable, "-m", "benchmarks.reliability.attacks", name, str(server.port), str(seconds)]
    attacker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)  # noqa: ASYNC220 # it starts at once
    try:
        probes = await ask_for(server, during, seconds)
    finally:
        attacker.kill()
        attacker.wait()  # it is dead
    start, p99 = time.monotonic(), percentile(sorted(alone.seconds), 99)
    is_normal = await until_normal(server, after, FACTOR * p99)
    attacked = percentile(sorted(during.seconds), 99) if during.seconds else float("inf")
    return {
        "attack": name,
        "good_requests": during.outcomes.total(),
        "alone_p99_ms": rounded(p99 * 1e3),
        "p99_ms": rounded(attacked * 1e3),
        "p99_over_alone": rounded(attacked / p99),
        "healthz_p99_ms": latency(probes).get("p99_ms"),
        "rejected": during.outcomes["rejected"],
        "failed": sum(of != "rejected" for each in (warm, alone, during, after) for of, _, _ in each.failures),
        "normal_after_s": rounded(time.monotonic() - start) if is_normal else None,
    }


async def ask_for(server: ServerProcess, known: KnownAnswers, seconds: float) -> list[float]:
    """Ask for images for so long; returns the latencies of `/healthz` meanwhile."""
    end, probes = time.monotonic() + seconds, list[float]()

    async def probe() -> None:
        while time.monotonic() < end:
            start = time.perf_counter()
            await fetch(server.port, get("/healthz"))
            probes.append(time.perf_counter() - start)
            await asyncio.sleep(0.1)

    await asyncio.gather(known.work(server.port, end, pause_s=0.02), probe())
    return probes


async def until_normal(server: ServerProcess, known: KnownAnswers, limit_s: float) -> bool:
    """Whether `IN_A_ROW` answers come within the limit, before `GIVE_UP_S`."""
    end = time.monotonic() + GIVE_UP_S
    while time.monotonic() < end:
        await known.ask(server.port)
        last = known.seconds[-IN_A_ROW:]
        if len(last) == IN_A_ROW and max(last) <= limit_s:
            return True
        await asyncio.sleep(0.02)
    return False


def attack(name: str, port: str, seconds: str, count: str = "1", seed: str = "0") -> None:
    os.nice(NICENESS)
    raise_file_limit()
    end = time.monotonic() + float(seconds)
    begin = partial(bad_clients, int(count), int(seed)) if name == BAD_CLIENTS else ATTACKS[name]()
    uvloop.run(begin(int(port), end))


OPTIONS: Final = {"seconds": (15.0, 3.0), "attacks": (list(ATTACKS),)}

if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        attack(*sys.argv[1:])
    else:
        sys.exit(run_benchmark("attacks", METHOD, measure, OPTIONS, judge=True))
