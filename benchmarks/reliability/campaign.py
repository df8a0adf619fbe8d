"""A seeded campaign of hostile requests against the service.

    python -m benchmarks.reliability.campaign --n 200000 --results benchmarks/results/campaign.json

The same seed sends the same requests.
"""

import argparse
import sys
from typing import Final

import numpy as np

from benchmarks.harness.common import Json, run_benchmark, target
from benchmarks.reliability.cases import KNOWN, SETTINGS, Case
from benchmarks.reliability.hostile_inputs import hostile
from benchmarks.reliability.soak import judged

METHOD = (
    "`clients` clients send hostile requests, each on a connection of its own. Right is: any "
    "2xx; a 4xx, 501, 503 or 504 that is a problem document with a code and without paths or "
    "tracebacks; for bytes that are no whole request, also a close. hangs: neither within a "
    "minute. Every `KNOWN_EVERY`th is a good one, which must get the right bytes. Memory: a "
    "least-squares line through the last two thirds of the run; flat means a growth of at "
    "most 5 % or 8 MiB; shorter runs than `MIN_FOR_MEMORY` requests have no memory target"
)
LIMITS: Final = {"IGN_MAX_IMAGES": "8", "IGN_MAX_STEPS": "50"}
KNOWN_EVERY: Final = 500
MIN_FOR_MEMORY: Final = 50_000  # about two minutes; before, threads and caches still grow


def measure(options: argparse.Namespace) -> Json:
    cases = (
        hostile(np.random.default_rng((options.seed, number)))
        if number % KNOWN_EVERY
        else Case("known", KNOWN)
        for number in range(options.n)
    )
    result = judged(
        SETTINGS | LIMITS,
        cases,
        (KNOWN,),
        options.clients,
        judges_memory=options.n >= MIN_FOR_MEMORY,
        module=("benchmarks.reliability.faulty_service", "unpaced"),
    )
    answers = result["answers"]
    hangs = sum(each["count"] for each in answers if each["answer"] == "TimeoutError")
    failed = sum(
        each["count"] for each in answers if each["kind"] == "known" and each["answer"] != "200"
    )
    result["targets"] += [
        target("hangs", hangs, at_most=0),
        target("known requests that failed", failed, at_most=0),
    ]
    return result


OPTIONS: Final = {
    "n": 200_000,
    "clients": 32,
    "seed": 0,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("campaign", METHOD, measure, OPTIONS, judge=True))
