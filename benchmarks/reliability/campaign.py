"""A seeded campaign of hostile requests against the service.

    python -m benchmarks.reliability.campaign --n 200000 --results benchmarks/results/campaign.json

The same seed sends the same requests.
"""

import argparse
import asyncio
import sys
from typing import Final

import numpy as np

from benchmarks.harness.common import Json, run_benchmark, target
from benchmarks.harness.processes import ServerProcess
from benchmarks.reliability.cases import KNOWN, SETTINGS, Case
from benchmarks.reliability.hostile_inputs import hostile, images
from benchmarks.reliability.soak import Log, right_answers, run_and_judge, send

METHOD = (
    "`clients` clients send hostile requests, each on a connection of its own. Right is: any "
    "2xx; a 4xx, 501, 503 or 504 that is a problem document with a code and without paths or "
    "tracebacks; for bytes that are no whole request, also a close. hangs: neither within a "
    "minute. Every `KNOWN_EVERY` requests a good one must get the right bytes. Memory: a "
    "least-squares line through the last two thirds of the run; flat means a growth of at "
    "most 5 % or 8 MiB; shorter runs than `MIN_FOR_MEMORY` requests have no memory target"
)
LIMITS: Final = {"IGN_MAX_REQUEST_PIXELS": "1000000", "IGN_MAX_IMAGES": "8", "IGN_MAX_STEPS": "50"}
KNOWN_EVERY: Final = 500
MIN_FOR_MEMORY: Final = 50_000  # about two minutes; before, threads and caches still grow


def measure(options: argparse.Namespace) -> Json:
    images()  # now, because they take seconds, and clients that connect and send nothing are closed

    async def load(server: ServerProcess, log: Log) -> None:
        log.right = await right_answers(server.port)
        numbers = iter(range(options.n))

        async def work() -> None:
            for number in numbers:
                if number % KNOWN_EVERY == 0:
                    await send(server, log, Case("known", KNOWN))
                case = hostile(np.random.default_rng((options.seed, number)))
                await send(server, log, case, f"request {number}: ")

        await asyncio.gather(*(work() for _ in range(options.clients)))

    unpaced = ("benchmarks.reliability.faulty_service", "unpaced")
    settings = SETTINGS | LIMITS
    result = run_and_judge(
        settings, load, judges_memory=options.n >= MIN_FOR_MEMORY, module=unpaced
    )
    answers = result["answers"]
    hangs = sum(line["count"] for line in answers if line["answer"] == "TimeoutError")
    failed = sum(
        line["count"] for line in answers if line["kind"] == "known" and line["answer"] != "200"
    )
    result["targets"] += [
        target("hangs", hangs, at_most=0),
        target("known requests that failed", failed, at_most=0),
    ]
    return result


OPTIONS: Final = {"n": (200_000, 1000), "clients": (32,), "seed": (0,)}

if __name__ == "__main__":
    sys.exit(run_benchmark("campaign", METHOD, measure, OPTIONS, judge=True))
