"""What a good client notices while another one attacks, and how soon the service is as before.

    python -m benchmarks.reliability.attacks --results benchmarks/results/attacks.json

Exits with status 0 if every target is met, else with 1.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop

from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    latency,
    percentile,
    report,
    rounded,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import ROOT, MemoryWatch, ServerProcess, rss_mib, service
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.load import request
from benchmarks.reliability.attackers import ATTACKS
from benchmarks.reliability.known_answer import KnownAnswers, right_answer
from benchmarks.soak import log_errors

METHOD = (
    "A service with the default settings for each attack. A good client asks for a picture every 20 ms on a new "
    "connection, and /healthz every 100 ms: alone, during the attack, and after it. Attackers run at nice 10 on the "
    "same machine. p99 over alone compares the good client with itself. growth: of the largest resident memory over "
    "that before. normal after: seconds until ten answers in a row take at most five times the p99 alone."
)
FULL = {"seconds": 15.0}
QUICK = {"seconds": 3.0}
PROBE: Final = request("/healthz", method="GET")
GIVE_UP_S: Final = 60.0
FACTOR: Final = 5
IN_A_ROW: Final = 10


def main() -> int:
    return run_benchmark(measure_all, apply_defaults(parser().parse_args(), full=FULL, quick=QUICK), judge=True)


def measure_all(options: argparse.Namespace) -> Json:
    lines = [one_attack(name, options.seconds) for name in options.attacks]
    return report("attacks", METHOD, options, targets=targets(lines, options), attacks=lines)


def targets(lines: list[Json], options: argparse.Namespace) -> list[Json]:
    """The targets of all attacks; a quick run has none of those in milliseconds."""
    result = []
    for line in lines:
        name = line["attack"]
        result += [
            target(f"{name}: growth of memory", line["growth_mib"], at_most=256.0, unit="MiB"),
            target(f"{name}: normal after", line["normal_after_s"], at_most=20.0, unit="s"),
            target(f"{name}: failed good requests, errors in the log", line["failed"], at_most=0),
        ]
        if not options.quick:
            result += [
                target(f"{name}: p99 over alone", line["p99_over_alone"], at_most=FACTOR),
                target(f"{name}: /healthz p99", line["healthz_p99_ms"], at_most=250.0, unit="ms"),
            ]
    return result


def one_attack(name: str, seconds: float) -> Json:
    """Run one attack against a service of its own."""
    with service({"IGN_ACCESS_LOG": "0"}) as server:
        before = rss_mib(server.pid)
        with MemoryWatch(server.pid, every_s=0.1) as watch:
            line = uvloop.run(measure(server, name, seconds))
        errors = log_errors(server)
    most = max(value for _, value in watch.samples)
    line["failed"] += len(errors)
    return line | {"growth_mib": rounded(most - before), "log_errors": len(errors)}


async def measure(server: ServerProcess, name: str, seconds: float) -> Json:
    """The good client alone, beside the attack, and after it."""
    right = await right_answer(server.port)
    alone, during, after = (KnownAnswers(right) for _ in range(3))
    for _ in range(20):  # the service is warm
        await alone.ask(server.port)
    alone = KnownAnswers(right)
    probes: list[float] = []
    await work(server, alone, [], seconds / 2)
    command = [sys.executable, "-m", "benchmarks.reliability.attackers", name, str(server.port), str(seconds)]
    attacker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)  # noqa: ASYNC220 # it starts at once
    try:
        await work(server, during, probes, seconds)
    finally:
        attacker.kill()
        attacker.wait()  # it is dead
    start = time.monotonic()
    p99 = percentile(sorted(alone.seconds), 99)
    normal = await until_normal(server, after, FACTOR * p99)
    kept = latency(during.seconds)
    return {
        "attack": name,
        "good_requests": during.outcomes.total(),
        "alone_p99_ms": rounded(p99 * 1e3),
        "p99_ms": kept.get("p99_ms"),
        "p99_over_alone": rounded(kept.get("p99_ms", float("inf")) / (p99 * 1e3)),
        "healthz_p99_ms": latency(probes).get("p99_ms"),
        "refused": during.outcomes["refused"],
        "failed": sum(of != "refused" for each in (alone, during, after) for of, _, _ in each.failures),
        "normal_after_s": rounded(time.monotonic() - start) if normal else None,
    }


async def work(server: ServerProcess, known: KnownAnswers, probes: list[float], seconds: float) -> None:
    end = time.monotonic() + seconds

    async def probe() -> None:
        begin = time.perf_counter()
        await fetch(server.port, PROBE)
        probes.append(time.perf_counter() - begin)

    async def every(pause_s: float, call: Callable[[], Awaitable[object]]) -> None:
        while time.monotonic() < end:
            await call()
            await asyncio.sleep(pause_s)

    await asyncio.gather(every(0.02, lambda: known.ask(server.port)), every(0.1, probe))


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


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure what a good client notices of attacks.")
    cli.add_argument("--seconds", type=duration, help="seconds of each attack (default 15; quick 3)")
    cli.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="which ones (default all)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
