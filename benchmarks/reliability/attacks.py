"""What a good client notices while another one attacks, and how soon the service is as before.

    python -m benchmarks.reliability.attacks --results benchmarks/results/attacks.json

Exits with status 0 if every target is met, else with 1.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from typing import Final

import uvloop

from benchmarks.harness.common import Json, latency, percentile, rounded, run_benchmark, target
from benchmarks.harness.processes import ROOT, MemoryWatch, ServerProcess, rss_mib, service
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import get
from benchmarks.reliability.attackers import ATTACKS
from benchmarks.reliability.known_answer import KnownAnswers, right_answer
from benchmarks.reliability.soak import log_errors

METHOD: Final = (
    "A service with the default settings for each attack. A good client asks for an image every 20 ms on a new "
    "connection, and /healthz every 100 ms: alone, during the attack, and after it. Attackers run at nice 10 on the "
    "same machine. p99 over alone compares the good client with itself. growth: of the largest resident memory over "
    "that before. normal after: seconds until ten answers in a row take at most five times the p99 alone"
)
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
        with MemoryWatch(server.pid, every_s=0.1) as watch:
            line = uvloop.run(beside(server, name, seconds))
        line["failed"] += len(log_errors(server))
    return line | {"growth_mib": rounded(max(value for _, value in watch.samples) - before)}


async def beside(server: ServerProcess, name: str, seconds: float) -> Json:
    """The good client alone, beside the attack, and after it."""
    right = await right_answer(server.port)
    warm, alone, during, after = (KnownAnswers(right) for _ in range(4))
    for _ in range(20):
        await warm.ask(server.port)
    await ask_for(server, alone, seconds / 2)
    command = [sys.executable, "-m", "benchmarks.reliability.attackers", name, str(server.port), str(seconds)]
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


OPTIONS: Final = {"seconds": (15.0, 3.0), "attacks": (list(ATTACKS),)}

if __name__ == "__main__":
    sys.exit(run_benchmark("attacks", METHOD, measure, OPTIONS, judge=True))
