"""Random mixed load on every endpoint, with bad input and clients that disconnect, for a long time.

python -m benchmarks.reliability.soak --seconds 600 --results benchmarks/results/soak.json
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.common import Json, memory, rounded, run_benchmark, target
from benchmarks.harness.processes import ServerProcess, memory_samples, service
from benchmarks.load_generator.fetch import ConnectionClosed, fetch
from benchmarks.reliability.cases import (
    GOOD,
    KNOWN,
    REJECTIONS,
    SETTINGS,
    Case,
    Rng,
    choose,
    content,
    disconnecting,
    good,
    oversized,
    problem,
    slow_body,
)
from benchmarks.reliability.hostile_inputs import hostile, images

METHOD = (
    "`clients` clients send random requests, one connection per request. Every status must "
    "be allowed for its request (429 and 503 always are), and every 200 must have the content "
    "that the request got alone; of hostile requests as in `campaign`. Memory: a least-squares "
    "line through the resident memory of the service in the last two thirds of the run; flat "
    "means a growth of at most 5 % or 8 MiB. Runs shorter than two minutes have no memory target"
)
MIN_SECONDS_FOR_MEMORY: Final = 120.0
SETTLE_S: Final = 10.0
SHOWN: Final = 20  # unexpected answers and log lines in the report


@dataclass(slots=True)
class Log:
    """The answers of a run, counted by kind of request and outcome, and descriptions of the first
    unexpected ones; ``right`` has the only right content of the 200 to a request.
    """

    right: Mapping[bytes, object] = field(default_factory=dict)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    wrong: int = 0

    def note(self, case: Case, outcome: str, problem: str = "") -> None:
        self.kinds[case.kind, outcome] += 1
        if problem:
            self.wrong += 1
            if len(self.unexplained) < SHOWN:
                self.unexplained.append(f"{case.kind}: {problem}"[:500])


async def send(server: ServerProcess, log: Log, case: Case, label: str = "") -> None:
    """Send one request and note what came of it."""
    try:
        answer = await fetch(server.port, case.data, leave_after_s=case.leave_after_s)
    except ConnectionClosed:
        log.note(case, "left")
    except OSError as exc:  # a TimeoutError is one, too
        is_right = case.may_close and not isinstance(exc, TimeoutError)
        log.note(case, type(exc).__name__, "" if is_right else f"{label}{exc!r}")
    else:
        wrong = problem(case, answer)
        if answer.status == 200 and case.data in log.right:
            is_right = content(answer) == log.right[case.data]
            wrong = "" if is_right else "200 with another content than alone"
        log.note(case, str(answer.status), wrong and label + wrong)


async def right_answers(port: int, requests: Sequence[bytes] = (KNOWN,)) -> dict[bytes, object]:
    """Requests whose answer is always the same, and the content of that answer."""
    answers = {data: await fetch(port, data) for data in requests}
    if wrong := [answer.status for answer in answers.values() if answer.status != 200]:
        raise RuntimeError(f"a known request was answered with {wrong[0]}")
    return {data: content(answer) for data, answer in answers.items()}


@dataclass(slots=True)
class KnownAnswers:
    """What good clients got that send the requests of ``right`` in turn; each 200 must have the
    content there.
    """

    right: Mapping[bytes, object]
    seconds: list[float] = field(default_factory=list)
    # ok, wrong, rejected, a status, or the error
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, float, float]] = field(default_factory=list)
    """All other outcomes than ok, with the times of sending and of the outcome in
    `time.monotonic`.
    """
    _turns: Iterator[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.right)

    async def ask(self, port: int, timeout_s: float = 60.0) -> str:
        """Send the next known request on a new connection; returns the outcome."""
        start = time.monotonic()
        data = next(self._turns)
        try:
            answer = await fetch(port, data, timeout_s=timeout_s)
        except OSError as exc:
            outcome = type(exc).__name__
        else:
            outcome = str(answer.status)
            if answer.status == 200:
                outcome = "ok" if content(answer) == self.right[data] else "wrong"
            elif answer.status in REJECTIONS and "retry-after" in answer.headers:
                outcome = "rejected"
        if outcome == "ok":
            self.seconds.append(time.monotonic() - start)
        else:
            self.failures.append((outcome, start, time.monotonic()))
        self.outcomes[outcome] += 1
        return outcome

    async def work(self, port: int, until: float, pause_s: float = 0.0) -> None:
        """Ask again and again until a `time.monotonic`."""
        while time.monotonic() < until:
            if await self.ask(port) != "ok":
                await asyncio.sleep(0.1)
            await asyncio.sleep(pause_s)


def run_and_judge(
    settings: Mapping[str, str],
    load: Callable[[ServerProcess, Log], Coroutine[Any, Any, None]],
    *,
    judges_memory: bool,
    module: Sequence[str] = ("service",),
) -> Json:
    """Run a service, of this ``module``, under a load; returns the result of a benchmark. Memory
    must be flat if ``judges_memory``.
    """
    log = Log()
    with service(settings, module) as server:
        with memory_samples(server.pid, every_s=0.2) as samples:
            start = time.monotonic()
            uvloop.run(load(server, log))
            seconds = time.monotonic() - start
        state = wait_until_idle(server)
        errors = log_errors(server)
    kept = memory(samples)
    targets = [
        target("unexplained answers", log.wrong, at_most=0),
        target("errors in the log", len(errors), at_most=0),
        target(
            "rows still queued, workers replaced, internal errors", sum(state.values()), at_most=0
        ),
    ]
    if judges_memory:
        name = f"growth of memory in the last {kept['seconds_judged'] / 60:.3g} minutes"
        targets.append(
            target(name, kept["growth_mib"], at_most=kept["allowed_growth_mib"], unit="MiB")
        )
    return {
        "settings": dict(settings),
        "targets": targets,
        "requests": log.kinds.total(),
        "requests_per_s": rounded(log.kinds.total() / seconds),
        "memory": [kept],
        "answers": [
            {"kind": kind, "answer": how, "count": n}
            for (kind, how), n in sorted(log.kinds.items())
        ],
        "unexplained": log.unexplained,
        "log_errors": errors[:SHOWN],
        "end_state": state,
    }


def pick(rng: Rng) -> Case:
    """A random request: 75 % are good, 13 % are bad, and 12 % disconnect."""
    luck = rng.random()
    if luck < 0.75:
        return good(rng)
    case: Case = choose(rng, (hostile, oversized, slow_body) if luck < 0.88 else (disconnecting,))(
        rng
    )
    return case


def measure(options: argparse.Namespace) -> Json:
    images()  # now, because they take seconds

    async def load(server: ServerProcess, log: Log) -> None:
        log.right = await right_answers(server.port, GOOD)
        end = time.monotonic() + options.seconds

        async def work(rng: Rng) -> None:
            while time.monotonic() < end:
                await send(server, log, pick(rng))

        await asyncio.gather(*map(work, np.random.default_rng(options.seed).spawn(options.clients)))

    return run_and_judge(SETTINGS, load, judges_memory=options.seconds >= MIN_SECONDS_FOR_MEMORY)


def wait_until_idle(server: ServerProcess) -> dict[str, float]:
    """The end state, after the service had up to `SETTLE_S` to notice that the last clients
    disconnected.
    """
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
            elif sample.name == "ign_http_errors_total" and sample.labels["code"] in (
                "internal",
                "model_failure",
            ):
                result["internal errors"] += sample.value
    return result


def log_errors(server: ServerProcess) -> list[str]:
    """Log lines with an error or a traceback."""
    signs = (" ERROR ", " CRITICAL ", "Traceback")
    return [line for line in server.log_text().splitlines() if any(sign in line for sign in signs)]


OPTIONS: Final = {"seconds": (600.0, 4.0), "clients": (16,), "seed": (0,)}

if __name__ == "__main__":
    sys.exit(run_benchmark("soak", METHOD, measure, OPTIONS, judge=True))
