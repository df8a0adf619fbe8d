"""What attacks of one caller cost a service that has nothing else to do, and what a second caller
waits meanwhile.

    python -m benchmarks.reliability.costs --results benchmarks/results/costs.json

Exits with status 0 if every cost is within the limit that `benchmarks.reliability.attacks` states,
else with 1.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

import uvloop

from benchmarks.harness.common import Json, run_benchmark, target
from benchmarks.harness.processes import (
    ServerProcess,
    cpu_seconds,
    memory_samples,
    rss_mib,
    service,
)
from benchmarks.load_generator.fetch import fetch
from benchmarks.reliability.attacks import BOUNDED, LITTLE, Attack, Attacker, counted, of_scans
from benchmarks.reliability.fairness import OTHER_HOST

METHOD: Final = (
    "A service with the default settings for each attack, after a digit, a small page and "
    "one of the largest tile. cpu_s: CPU time of the service from the begin of the attack "
    "until it is over. mib: its most resident memory over that before. left_mib: its "
    "resident memory over that before, when it has been idle. wait_s: the longest time of "
    "what a second caller sends meanwhile, one after another, over the median without the "
    "attack; wait_units: the median time, likewise, in times of the attack's `unit`, which "
    "is sent without the attack. Attacks without an end take `seconds`"
)
UNITS: Final = {"cpu_s": "s", "mib": "MiB", "left_mib": "MiB", "wait_s": "s", "wait_units": ""}
# onnxruntime keeps what its largest tile takes
WARM: Final = (LITTLE, of_scans(90, 90), of_scans(1300, 1300))
TIMES: Final = 5  # measured without the attack
IDLE_S: Final = 3.0  # the service collects garbage, and gives memory back


def measure(options: argparse.Namespace) -> Json:
    lines = list[Json]()
    targets = list[Json]()
    for name in options.attacks:
        bounded = BOUNDED[name]
        with service({"IGN_ACCESS_LOG": "0", **bounded.settings}) as server:
            line = uvloop.run(attacked(server, bounded, options.seconds))
        lines.append({"attack": name} | line)
        targets += [
            target(f"{name}: {column}", line[column], at_most=most, unit=UNITS[column])
            for column, most in bounded.limits.items()
        ]
    return {"targets": targets, "attacks": lines}


async def attacked(server: ServerProcess, bounded: Attack, seconds: float) -> Json:
    """Measure one attack."""
    await median_of(server, WARM)
    alone = await median_of(server, bounded.probe)
    unit = await median_of(server, bounded.unit)
    attacker = Attacker(server.port, server.pid, OTHER_HOST, end=time.monotonic() + seconds)
    waits = list[float]()
    idle = rss_mib(server.pid)
    cpu = cpu_seconds(server.pid)
    with memory_samples(server.pid, every_s=0.05) as samples:
        attacking = asyncio.create_task(bounded.make()(attacker))
        while bounded.probe and not attacking.done():
            waits.append(await asked(server, bounded.probe))
        await attacking
        await asyncio.sleep(IDLE_S)
    return {
        "cpu_s": cpu_seconds(server.pid) - cpu,
        "mib": max(mib for _, mib in samples) - idle,
        "left_mib": rss_mib(server.pid) - idle,
        "wait_s": max(waits) - alone if waits else None,
        "wait_units": (statistics.median(waits) - alone) / unit if unit else None,
        "attacker": counted(attacker.statuses),
    }


async def median_of(server: ServerProcess, requests: Sequence[bytes]) -> float:
    """The median time of the requests, sent `TIMES` times."""
    return statistics.median([await asked(server, requests) for _ in range(TIMES)])


async def asked(server: ServerProcess, requests: Sequence[bytes]) -> float:
    """The time of the requests, one after another, each on a new connection."""
    start = time.perf_counter()
    for data in requests:
        await fetch(server.port, data)
    return time.perf_counter() - start if requests else 0.0


OPTIONS: Final = {
    "seconds": 15.0,
    "attacks": list(BOUNDED),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("costs", METHOD, measure, OPTIONS, judge=True))
