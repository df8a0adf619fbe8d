"""What a second caller notices while one caller attacks, and how soon the service is as before.

    python -m benchmarks.reliability.fairness --results benchmarks/results/fairness.json

Exits with status 0 if every target is met, else with 1.
"""

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

import uvloop
from PIL import Image

from benchmarks.harness.common import Json, latency, run_benchmark, target
from benchmarks.harness.processes import (
    HOST,
    ServerProcess,
    memory_samples,
    raise_file_limit,
    rss_mib,
    service,
)
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import get, post, upload, with_headers
from benchmarks.reliability.attacks import ATTACKS, BAD_CLIENTS, Attacker, attack, counted, prepare
from benchmarks.reliability.cases import KNOWN
from benchmarks.reliability.soak import KnownAnswers, log_errors, right_answers
from tests.contract.harness import bearer, write_keys
from tests.helpers.pictures import save

METHOD: Final = (
    "A service with the default settings for each attack. The second caller sends 5 requests "
    "a second, whether or not the earlier ones are answered, each on a new connection: an "
    "image generated, a PNG of 100 KB projected, and an image in JSON. /healthz is asked "
    "every 100 ms. First the second caller is alone, then beside the attack, then after it. "
    "callers: `address`: no keys, and the attacker has another address; `key`: both have a "
    "key, of 10 000, and the same address; `no key`: keys are on, the attacker has none and "
    "another address. Attackers run at nice 10 on the same machine. memory: the largest "
    "resident memory over that of the second caller alone. normal after: seconds until ten "
    "answers in a row are within the limit of p99"
)
PER_S: Final = 5
ORDINARY: Final = (
    KNOWN,
    upload("/project?steps=1", save(Image.effect_noise((350, 350), 64))),
    post("/generate", {"seed": 1, "steps": 1, "model": "fashion_mnist"}),
)
TIMEOUT_S: Final = 10.0
GIVE_UP_S: Final = 60.0
IN_A_ROW: Final = 10
# what requests may hold by default: IGN_MAX_INFLIGHT_BYTES and its reserve of a quarter
MEMORY_MIB = 640.0
HEALTH_MS = 250.0


# of a process that was stopped
SUPERVISION: Final = re.compile("process [0-9]+ (sent no beat|ended with status -9)")


class Callers(NamedTuple):
    """Address and headers of the attacker, and headers of the second caller."""

    source: str
    headers: Mapping[str, str]
    second_headers: Mapping[str, str]


OTHER_HOST: Final = "127.0.0.2"
ATTACKER: Final = bearer("attacker")
SECOND: Final = bearer("second")
CALLERS: Final = {
    "address": Callers(OTHER_HOST, {}, {}),
    "key": Callers(HOST, ATTACKER, SECOND),
    "no key": Callers(OTHER_HOST, {}, SECOND),
}


# of 10 000 callers
SCOPES: Final = dict.fromkeys(
    ("attacker", "second", *(f"caller-{number}" for number in range(9998))), "infer"
)


def measure(options: argparse.Namespace) -> Json:
    raise_file_limit()
    lines = list[Json]()
    targets = list[Json]()
    for name, callers in product(options.attacks, options.callers):
        line = one_attack(name, callers, options.seconds)
        lines.append(line)
        limits = [
            target("errors", line["errors"], at_most=0),
            target("memory", line["memory_mib"], at_most=MEMORY_MIB, unit="MiB"),
            target("normal after", line["normal_after_s"], at_most=20.0, unit="s"),
            target("p99", line["p99_ms"], at_most=line["limit_ms"], unit="ms"),
            target("health", line["healthz_worst_ms"], at_most=HEALTH_MS, unit="ms"),
        ]
        targets += [each | {"what": f"{name}, {callers}: {each['what']}"} for each in limits]
    return {"targets": targets, "attacks": lines}


def one_attack(name: str, callers: str, seconds: float) -> Json:
    """Run one attack against a service of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"IGN_ACCESS_LOG": "0", **ATTACKS[name].settings}
        if CALLERS[callers].second_headers:
            settings["IGN_API_KEYS_FILE"] = str(write_keys(Path(folder), SCOPES))
        with service(settings) as server:
            line = uvloop.run(beside(server, name, CALLERS[callers], seconds))
            line["errors"] += sum(SUPERVISION.search(each) is None for each in log_errors(server))
    return {"attack": name, "callers": callers} | line


async def beside(server: ServerProcess, name: str, callers: Callers, seconds: float) -> Json:
    """The second caller alone, beside the attack, and after it."""
    right = await right_answers(
        server.port, [with_headers(data, callers.second_headers) for data in ORDINARY]
    )
    warm, alone, during, after = (KnownAnswers(right) for _ in range(4))
    for _ in range(20):
        await warm.ask(server.port)
    await ask_for(server, alone, seconds / 2)
    idle = rss_mib(server.pid)
    settle_s = ATTACKS[name].settle_s
    alone_ms = latency(alone.seconds)["p99_ms"]
    limit_ms = 3 * alone_ms + 50
    loop = asyncio.get_running_loop()
    attacker = Attacker(server.port, server.pid, callers.source, callers.headers)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        await loop.run_in_executor(pool, prepare, name)
        attacking = loop.run_in_executor(pool, attack, name, settle_s + seconds, attacker)
        await asyncio.sleep(settle_s)
        with memory_samples(server.pid, every_s=0.1) as samples:
            probes = await ask_for(server, during, seconds)
        statuses = await attacking
    start = time.monotonic()
    is_normal = await until_normal(server, after, limit_ms / 1e3)
    failed = [of for each in (warm, alone, during) for of, _, _ in each.failures]
    failed += [of for of, _, _ in after.failures if of != "rejected"]
    return {
        "requests": during.outcomes.total(),
        "errors": len(failed),
        "kinds": " ".join(sorted(set(failed))),
        "alone_p99_ms": alone_ms,
        "limit_ms": limit_ms,
        "p99_ms": latency(during.seconds).get("p99_ms"),
        "healthz_worst_ms": max(probes) * 1e3,
        "memory_mib": max(value for _, value in samples) - idle,
        "normal_after_s": (time.monotonic() - start) if is_normal else None,
        "attacker": counted(statuses),
    }


async def ask_for(server: ServerProcess, known: KnownAnswers, seconds: float) -> list[float]:
    """Send ordinary requests for so long; returns the latencies of `/healthz` meanwhile."""
    end = time.monotonic() + seconds
    probes = list[float]()

    async def probe() -> None:
        while time.monotonic() < end:
            start = time.perf_counter()
            with contextlib.suppress(OSError):
                await fetch(server.port, get("/healthz"), timeout_s=TIMEOUT_S)
            probes.append(time.perf_counter() - start)
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        group.create_task(probe())
        while time.monotonic() < end:
            group.create_task(known.ask(server.port, TIMEOUT_S))
            await asyncio.sleep(1 / PER_S)
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


OPTIONS: Final = {
    "seconds": 15.0,
    "attacks": [name for name in ATTACKS if name != BAD_CLIENTS],
    "callers": list(CALLERS),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("fairness", METHOD, measure, OPTIONS, judge=True))
