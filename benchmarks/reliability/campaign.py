"""A seeded campaign of hostile requests against the service.

    python -m benchmarks.reliability.campaign --n 200000 --results benchmarks/results/campaign.json

The same seed sends the same requests. Exits with status 0 if every response was right and memory was flat, else 1.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Final

import numpy as np
import uvloop

from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    memory,
    positive,
    report,
    rounded,
    target,
    write,
)
from benchmarks.harness.processes import MemoryWatch, ServerFailed, ServerProcess, service
from benchmarks.load_generator.fetch import Answer, fetch
from benchmarks.load_generator.traffic import Case
from benchmarks.reliability.hostile_inputs import SETTINGS, Input, bombs, gzip_bomb, hostile
from benchmarks.reliability.known_answer import KnownAnswers, right_answer
from benchmarks.soak import SoakLog, log_errors, wait_until_idle

METHOD = (
    "`workers` clients send hostile requests, each on a connection of its own. Right is: any 2xx; a 4xx, 501, 503 or "
    "504 that is a problem document with a code and without paths or tracebacks; for bytes that are no whole request, "
    "also a close. hangs: neither within `PATIENCE_S`. Every `KNOWN_EVERY` requests a good one must get the right "
    "bytes. Memory: a least-squares line through the last two thirds of the run; flat means a growth of at most 5 % "
    "or 8 MiB."
)
FULL = {"n": 200_000}
QUICK = {"n": 1000}
PATIENCE_S: Final = 60.0
KNOWN_EVERY: Final = 500
MIN_FOR_MEMORY: Final = 10_000
ALLOWED_5XX: Final = frozenset({501, 503, 504})
LEAKS: Final = (b"Traceback", b'File \\"', b"site-packages", b"/service/")


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    try:
        result = campaign(options)
    except ServerFailed as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    write(result, options.results)
    return 0 if all(line["met"] for line in result["targets"]) else 1


def campaign(options: argparse.Namespace) -> Json:
    log = SoakLog()
    bombs(), gzip_bomb()  # now, because they take seconds, and clients that connect and send nothing are closed
    with service(SETTINGS) as server:
        with MemoryWatch(server.pid) as watch:
            start = time.monotonic()
            known = uvloop.run(run(server, log, options))
            seconds = time.monotonic() - start
        state, errors = wait_until_idle(server), log_errors(server)
    kept = memory(watch.samples)
    targets = [
        target("wrong responses", log.wrong, at_most=0),
        target("hangs", sum(n for (_, how), n in log.kinds.items() if how == "TimeoutError"), at_most=0),
        target("known requests that failed", known.outcomes.total() - known.outcomes["ok"], at_most=0),
        target("errors in the log", len(errors), at_most=0),
        target("rows still queued, workers replaced, internal errors", sum(state.values()), at_most=0),
    ]
    if options.n >= MIN_FOR_MEMORY:
        targets.append(target("growth of memory", kept["growth_mib"], at_most=kept["allowed_growth_mib"], unit="MiB"))
    return report(
        "campaign",
        METHOD,
        options,
        targets=targets,
        requests=sum(log.kinds.values()),
        requests_per_s=rounded(sum(log.kinds.values()) / seconds),
        memory=[kept],
        answers=[{"kind": kind, "answer": how, "count": n} for (kind, how), n in sorted(log.kinds.items())],
        unexplained=log.unexplained,
        log_errors=errors[:20],
        end_state=state,
    )


async def run(server: ServerProcess, log: SoakLog, options: argparse.Namespace) -> KnownAnswers:
    known = KnownAnswers(await right_answer(server.port))
    numbers = iter(range(options.n))

    async def work() -> None:
        for number in numbers:
            if number % KNOWN_EVERY == 0:
                await known.ask(server.port)
            await send(server, log, hostile(np.random.default_rng((options.seed, number))), number)

    await asyncio.gather(*(work() for _ in range(options.workers)))
    return known


async def send(server: ServerProcess, log: SoakLog, given: Input, number: int) -> None:
    case = Case(given.kind, b"")
    try:
        answer = await fetch(server.port, given.data, timeout_s=PATIENCE_S)
    except TimeoutError:
        log.note(case, "TimeoutError", f"request {number} hangs")
    except OSError as exc:
        log.note(case, "closed", "" if given.may_close else f"request {number}: {exc!r}")
    else:
        wrong = problem(answer)
        log.note(case, str(answer.status), f"request {number}: {wrong}" if wrong else "")


def problem(answer: Answer) -> str:
    """What is wrong with a response to a hostile request; empty if nothing is."""
    if answer.status < 400:
        return ""
    if answer.status >= 500 and answer.status not in ALLOWED_5XX:
        return f"{answer.status} {answer.body[:300]!r}"
    if any(leak in answer.body for leak in LEAKS):
        return f"{answer.status} leaks {answer.body[:300]!r}"
    try:
        document = json.loads(answer.body)
        described = document["code"] if "code" in document else document["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status} without a problem document: {answer.body[:100]!r}"
    return "" if described else f"{answer.status} without a code"


def parser() -> argparse.ArgumentParser:
    cli = arguments("Send hostile requests to the service.")
    cli.add_argument("--n", type=positive, help="requests (default 200000; quick 1000)")
    cli.add_argument("--seed", type=int, default=0, help="seed of the requests (default 0)")
    cli.add_argument("--workers", type=positive, default=32, help="requests at once (default 32)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
