"""Random mixed load over every endpoint and form, with bad input and clients that leave, for a long time.

    python -m benchmarks.soak --seconds 600 --results benchmarks/results/soak.json

Ends with status 0 if every answer was one that its request allows, memory was flat, nothing waits any more and the
log holds no error; else with 1.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.common import (
    Json,
    arguments,
    duration,
    memory,
    positive,
    report,
    rounded,
    setting,
    settle,
    target,
    write,
)
from benchmarks.harness.processes import MemoryWatch, Server, ServerFailed, service
from benchmarks.load_generator.fetch import Answer, Left, fetch
from benchmarks.load_generator.traffic import SETTINGS, Case, Rng, pick

METHOD = (
    "random requests, one connection each, from so many workers at once; every answer's status has to be one that the "
    "request allows (429 and 503 always are), every 200 has to hold what was asked for. Memory: resident set of the "
    "service, least-squares line over the last two thirds; flat is a growth of at most 5 % or 8 MiB; runs shorter "
    "than two minutes are not judged by it"
)
FULL = {"seconds": 600.0}
QUICK = {"seconds": 4.0}
REFUSALS = frozenset({429, 503})
JUDGED_S = 120.0
SETTLE_S = 10.0
SHOWN = 20  # unexplained answers that are kept


@dataclass(slots=True)
class Diary:
    """What has been seen."""

    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    wrong: int = 0

    def note(self, case: Case, outcome: str, trouble: str = "") -> None:
        self.kinds[case.name, outcome] += 1
        if trouble:
            self.wrong += 1
            if len(self.unexplained) < SHOWN:
                self.unexplained.append(f"{case.name}: {trouble}"[:500])


def main() -> int:
    options = settle(parser().parse_args(), full=FULL, quick=QUICK)
    try:
        found = soak(options)
    except ServerFailed as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    write(found, options.results)
    return 0 if all(line["met"] for line in found["targets"]) else 1


def soak(options: argparse.Namespace) -> Json:
    diary = Diary()
    settings = SETTINGS | dict(options.setting)
    with service(settings) as server:
        with MemoryWatch(server.pid, every_s=min(1.0, options.seconds / 20)) as watch:
            start = time.monotonic()
            uvloop.run(run(server, diary, options))
            seconds = time.monotonic() - start
        state, errors = settled(server), log_errors(server)
    kept = memory(watch.samples)
    targets = [
        target("unexplained answers", diary.wrong, at_most=0),
        target("errors in the log", len(errors), at_most=0),
        target("rows still queued, workers replaced, internal errors", sum(state.values()), at_most=0),
    ]
    if options.seconds >= JUDGED_S:
        targets.append(target("growth of memory", kept["growth_mib"], at_most=kept["allowed_growth_mib"], unit="MiB"))
    return report(
        "soak",
        METHOD,
        options,
        settings=settings,
        targets=targets,
        requests=sum(diary.kinds.values()),
        requests_per_s=rounded(sum(diary.kinds.values()) / seconds),
        memory=[kept],
        answers=[{"kind": kind, "answer": how, "count": n} for (kind, how), n in sorted(diary.kinds.items())],
        unexplained=diary.unexplained,
        log_errors=errors[:SHOWN],
        end_state=state,
    )


async def run(server: Server, diary: Diary, options: argparse.Namespace) -> None:
    end = time.monotonic() + options.seconds
    rngs = np.random.default_rng(options.seed).spawn(options.workers)
    await asyncio.gather(*(work(server, diary, rng, end) for rng in rngs))


async def work(server: Server, diary: Diary, rng: Rng, end: float) -> None:
    while time.monotonic() < end:
        case = pick(rng)
        try:
            answer = await fetch(server.port, case.data, leave_after_s=case.leave_after_s)
        except Left:
            diary.note(case, "left")
        except (OSError, TimeoutError) as exc:
            diary.note(case, type(exc).__name__, repr(exc))
        else:
            diary.note(case, str(answer.status), trouble(case, answer))


def trouble(case: Case, answer: Answer) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if answer.status in REFUSALS:
        return "" if "retry-after" in answer.headers else f"{answer.status} without Retry-After"
    if answer.status not in case.expected:
        return f"{answer.status} {answer.body[:300]!r}"
    if answer.status == 200:
        try:
            case.check(answer)
        except Exception as exc:  # whatever a decoder raises: the answer is not what was asked for
            return f"200, but {exc!r}"
    return ""


def settled(server: Server) -> dict[str, float]:
    """The end state; the service gets a while to notice that the last clients have left."""
    end = time.monotonic() + SETTLE_S
    while (state := end_state(server))["rows queued"] and time.monotonic() < end:
        time.sleep(0.1)
    return state


def end_state(server: Server) -> dict[str, float]:
    """What the service says of itself when all is over; all of it should be 0."""
    wanted = {"ign_queue_rows": "rows queued", "ign_worker_replacements_total": "workers replaced"}
    found = dict.fromkeys([*wanted.values(), "internal errors"], 0.0)
    for family in text_string_to_metric_families(server.get("/metrics")[1].decode()):
        for sample in family.samples:
            if sample.name in wanted:
                found[wanted[sample.name]] += sample.value
            elif sample.name == "ign_http_errors_total" and sample.labels["code"] in ("internal", "model_failure"):
                found["internal errors"] += sample.value
    return found


def log_errors(server: Server) -> list[str]:
    """Lines of the log that speak of a failure."""
    signs = (" ERROR ", " CRITICAL ", "Traceback")
    return [line for line in server.said().splitlines() if any(sign in line for sign in signs)]


def parser() -> argparse.ArgumentParser:
    found = arguments("Put the service under random mixed load for a long time.")
    found.add_argument("--seconds", type=duration, help="how long (default 600; quick 4)")
    found.add_argument("--workers", type=positive, default=16, help="requests at once (default 16)")
    found.add_argument(
        "--setting", type=setting, action="append", default=[], metavar="IGN_NAME=VALUE", help="of the service"
    )
    found.add_argument("--seed", type=int, default=0, help="of the random requests (default 0)")
    return found


if __name__ == "__main__":
    sys.exit(main())
