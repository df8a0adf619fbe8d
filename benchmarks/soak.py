"""Random mixed load on every endpoint, with bad input and clients that disconnect, for a long time.

    python -m benchmarks.soak --seconds 600 --results benchmarks/results/soak.json

Exits with status 0 if every answer was allowed for its request, memory was flat, no row is queued at the end and the
log has no error; else with 1.
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
    apply_defaults,
    arguments,
    duration,
    memory,
    positive,
    report,
    rounded,
    run_benchmark,
    setting,
    target,
)
from benchmarks.harness.processes import MemoryWatch, ServerProcess, service
from benchmarks.load_generator.fetch import Answer, ConnectionClosed, fetch
from benchmarks.load_generator.traffic import SETTINGS, Case, Rng, pick

METHOD = (
    "`workers` clients send random requests, one connection per request. Every status must be allowed for its request "
    "(429 and 503 always are), and every 200 must contain what the request asked for. Memory: a least-squares line "
    "through the resident memory of the service from `flat_after` seconds on, by default the last two thirds of the "
    "run; flat means a growth of at most 5 % or 8 MiB. Runs shorter than two minutes have no memory target."
)
FULL = {"seconds": 600.0}
QUICK = {"seconds": 4.0}
REFUSALS = frozenset({429, 503})
MIN_SECONDS_FOR_MEMORY = 120.0
SETTLE_S = 10.0
SHOWN = 20  # unexpected answers and log lines in the report


@dataclass(slots=True)
class SoakLog:
    """The answers of a run, counted by kind of request and outcome, and descriptions of the first unexpected ones."""

    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    wrong: int = 0

    def note(self, case: Case, outcome: str, problem: str = "") -> None:
        self.kinds[case.name, outcome] += 1
        if problem:
            self.wrong += 1
            if len(self.unexplained) < SHOWN:
                self.unexplained.append(f"{case.name}: {problem}"[:500])


def main() -> int:
    cli = parser()
    options = apply_defaults(cli.parse_args(), full=FULL, quick=QUICK)
    options.flat_after = options.seconds / 3 if options.flat_after is None else options.flat_after
    if options.flat_after > options.seconds / 2:
        cli.error("--flat-after: must be at most half of --seconds")
    return run_benchmark(soak, options, judge=True)


def soak(options: argparse.Namespace) -> Json:
    log = SoakLog()
    settings = SETTINGS | dict(options.setting)
    with service(settings) as server:
        with MemoryWatch(server.pid, every_s=min(1.0, options.seconds / 20)) as watch:
            start = time.monotonic()
            uvloop.run(run(server, log, options))
            seconds = time.monotonic() - start
        state, errors = wait_until_idle(server), log_errors(server)
    kept = memory(watch.samples, warmup=options.flat_after / options.seconds)
    targets = [
        target("unexplained answers", log.wrong, at_most=0),
        target("errors in the log", len(errors), at_most=0),
        target("rows still queued, workers replaced, internal errors", sum(state.values()), at_most=0),
    ]
    if options.seconds >= MIN_SECONDS_FOR_MEMORY:
        name = f"growth of memory after {options.flat_after / 60:.3g} minutes"
        targets.append(target(name, kept["growth_mib"], at_most=kept["allowed_growth_mib"], unit="MiB"))
    return report(
        "soak",
        METHOD,
        options,
        settings=settings,
        targets=targets,
        requests=sum(log.kinds.values()),
        requests_per_s=rounded(sum(log.kinds.values()) / seconds),
        memory=[kept],
        answers=[{"kind": kind, "answer": how, "count": n} for (kind, how), n in sorted(log.kinds.items())],
        unexplained=log.unexplained,
        log_errors=errors[:SHOWN],
        end_state=state,
    )


async def run(server: ServerProcess, log: SoakLog, options: argparse.Namespace) -> None:
    end = time.monotonic() + options.seconds
    rngs = np.random.default_rng(options.seed).spawn(options.workers)
    await asyncio.gather(*(work(server, log, rng, end) for rng in rngs))


async def work(server: ServerProcess, log: SoakLog, rng: Rng, end: float) -> None:
    while time.monotonic() < end:
        case = pick(rng)
        try:
            answer = await fetch(server.port, case.data, leave_after_s=case.leave_after_s)
        except ConnectionClosed:
            log.note(case, "left")
        except (OSError, TimeoutError) as exc:
            log.note(case, type(exc).__name__, repr(exc))
        else:
            log.note(case, str(answer.status), problem(case, answer))


def problem(case: Case, answer: Answer) -> str:
    """Why an answer is unexpected; empty if it is not."""
    if answer.status in REFUSALS:
        return "" if "retry-after" in answer.headers else f"{answer.status} without Retry-After"
    if answer.status not in case.expected:
        return f"{answer.status} {answer.body[:300]!r}"
    if answer.status == 200:
        try:
            case.check(answer)
        except Exception as exc:  # any decoder error means a wrong answer
            return f"200, but {exc!r}"
    return ""


def wait_until_idle(server: ServerProcess) -> dict[str, float]:
    """The end state, after the service had up to `SETTLE_S` to notice that the last clients disconnected."""
    end = time.monotonic() + SETTLE_S
    while (state := end_state(server))["rows queued"] and time.monotonic() < end:
        time.sleep(0.1)
    return state


def end_state(server: ServerProcess) -> dict[str, float]:
    """Queued rows, replaced workers and internal errors, from `/metrics`; each should be 0."""
    wanted = {"ign_queue_rows": "rows queued", "ign_worker_replacements_total": "workers replaced"}
    result = dict.fromkeys([*wanted.values(), "internal errors"], 0.0)
    for family in text_string_to_metric_families(server.get("/metrics")[1].decode()):
        for sample in family.samples:
            if sample.name in wanted:
                result[wanted[sample.name]] += sample.value
            elif sample.name == "ign_http_errors_total" and sample.labels["code"] in ("internal", "model_failure"):
                result["internal errors"] += sample.value
    return result


def log_errors(server: ServerProcess) -> list[str]:
    """Log lines with an error or a traceback."""
    signs = (" ERROR ", " CRITICAL ", "Traceback")
    return [line for line in server.log_text().splitlines() if any(sign in line for sign in signs)]


def parser() -> argparse.ArgumentParser:
    cli = arguments("Send random mixed load to the service for a long time.")
    cli.add_argument("--seconds", type=duration, help="how long (default 600; quick 4)")
    cli.add_argument(
        "--flat-after", type=duration, help="seconds from which on memory must be flat (default: a third of the run)"
    )
    cli.add_argument("--workers", type=positive, default=16, help="requests at once (default 16)")
    cli.add_argument(
        "--setting",
        type=setting,
        action="append",
        default=[],
        metavar="IGN_NAME=VALUE",
        help="a setting of the service",
    )
    cli.add_argument("--seed", type=int, default=0, help="seed of the random requests (default 0)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
