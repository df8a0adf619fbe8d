"""Random mixed load on every endpoint, with bad input and clients that disconnect, for a long time.

python -m benchmarks.reliability.soak --seconds 600 --results benchmarks/results/soak.json
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.common import Json, memory, run_benchmark, target
from benchmarks.harness.processes import ServerProcess, memory_samples, service
from benchmarks.load_generator.fetch import fetch
from benchmarks.reliability.cases import (
    GOOD,
    KNOWN,
    SETTINGS,
    Case,
    Rng,
    content,
    disconnecting,
    good,
    oversized,
    problem,
    slow_body,
)
from benchmarks.reliability.hostile_inputs import hostile, images
from model_export.data.chance import choose

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
        case = Case("known", next(self._turns))
        outcome, wrong = await sent(port, case, self.right, timeout_s)
        if outcome == "200":
            outcome = "wrong" if wrong else "ok"
        elif not wrong:
            outcome = "rejected"
        if outcome == "ok":
            self.seconds.append(time.monotonic() - start)
        else:
            self.failures.append((outcome, start, time.monotonic()))
        self.outcomes[outcome] += 1
        return outcome

    @asynccontextmanager
    async def asked_by(self, clients: int, port: int, pause_s: float = 0.0) -> AsyncIterator[None]:
        """So many clients ask again and again until the block ends."""
        over = asyncio.Event()

        async def work() -> None:
            while not over.is_set():
                if await self.ask(port) != "ok":
                    await asyncio.sleep(0.1)
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(work())
            yield
            over.set()


def judged(
    settings: Mapping[str, str],
    cases: Iterator[Case],
    known: Sequence[bytes],
    clients: int,
    *,
    judges_memory: bool,
    module: Sequence[str] = ("service",),
) -> Json:
    """The result of clients that send the requests of ``cases`` to a service of this ``module``;
    every 200 to one of ``known`` must have the content that it has alone.
    """
    answers = Counter[tuple[str, str]]()
    unexplained = list[str]()
    numbered = enumerate(cases)

    async def work(port: int, right: Mapping[bytes, object]) -> None:
        for number, case in numbered:
            outcome, wrong = await sent(port, case, right)
            answers[case.kind, outcome] += 1
            if wrong:
                unexplained.append(f"request {number}, {case.kind}: {wrong}"[:500])

    async def load(port: int) -> None:
        right = await right_answers(port, known)
        await asyncio.gather(*(work(port, right) for _ in range(clients)))

    images()  # now, because they take seconds, and clients that send nothing are closed
    with service(settings, module) as server:
        with memory_samples(server.pid, every_s=0.2) as samples:
            start = time.monotonic()
            uvloop.run(load(server.port))
            seconds = time.monotonic() - start
        state = wait_until_idle(server)
        errors = log_errors(server)
    kept = memory(samples)
    targets = [
        target("unexplained answers", len(unexplained), at_most=0),
        target("errors in the log", len(errors), at_most=0),
        target("rows still queued, workers replaced", sum(state.values()), at_most=0),
    ]
    if judges_memory:
        name = f"growth of memory in the last {kept['seconds_judged'] / 60:.3g} minutes"
        allowed = kept["allowed_growth_mib"]
        targets.append(target(name, kept["growth_mib"], at_most=allowed, unit="MiB"))
    return {
        "settings": dict(settings),
        "targets": targets,
        "requests": answers.total(),
        "requests_per_s": answers.total() / seconds,
        "memory": [kept],
        "answers": [
            {"kind": kind, "answer": how, "count": n} for (kind, how), n in sorted(answers.items())
        ],
        "unexplained": unexplained[:SHOWN],
        "log_errors": errors[:SHOWN],
        "end_state": state,
    }


async def sent(
    port: int, case: Case, right: Mapping[bytes, object], timeout_s: float = 60.0
) -> tuple[str, str]:
    """Send one request on a new connection; the outcome, and why it is unexpected."""
    try:
        answer = await fetch(port, case.data, timeout_s=case.leave_after_s or timeout_s)
    except TimeoutError as exc:
        return ("left", "") if case.leave_after_s else (type(exc).__name__, repr(exc))
    except OSError as exc:
        return type(exc).__name__, "" if case.may_close else repr(exc)
    wrong = problem(case, answer)
    if answer.status == 200 and case.data in right and content(answer) != right[case.data]:
        wrong = "200 with another content than alone"
    return str(answer.status), wrong


def pick(rng: Rng) -> Case:
    """A random request: 75 % are good, 13 % are bad, and 12 % disconnect."""
    luck = rng.random()
    if luck < 0.75:
        return good(rng)
    makers = (hostile, oversized, slow_body) if luck < 0.88 else (disconnecting,)
    return choose(rng, makers)(rng)


def random_cases(seed: int, seconds: float) -> Iterator[Case]:
    """Requests until the time is over, which begins with the first one."""
    end = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() >= end:
            return
        yield pick(np.random.default_rng((seed, number)))


def measure(options: argparse.Namespace) -> Json:
    return judged(
        SETTINGS,
        random_cases(options.seed, options.seconds),
        GOOD,
        options.clients,
        judges_memory=options.seconds >= MIN_SECONDS_FOR_MEMORY,
    )


def wait_until_idle(server: ServerProcess) -> dict[str, float]:
    """The end state, after the service had up to `SETTLE_S` to notice that the last clients
    disconnected.
    """
    end = time.monotonic() + SETTLE_S
    while (state := end_state(server))["rows queued"] and time.monotonic() < end:
        time.sleep(0.1)
    return state


def end_state(server: ServerProcess) -> dict[str, float]:
    """Queued rows and replaced workers, from `/metrics`; each should be 0."""
    text = server.get("/metrics")[1].decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    wanted = {"ign_queue_rows": "rows queued", "ign_worker_replacements_total": "workers replaced"}
    return {
        what: sum(each.value for each in samples if each.name == name)
        for name, what in wanted.items()
    }


def log_errors(server: ServerProcess) -> list[str]:
    """Log lines with an error or a traceback."""
    signs = (" ERROR ", " CRITICAL ", "Traceback")
    return [line for line in server.log_text().splitlines() if any(sign in line for sign in signs)]


OPTIONS: Final = {
    "seconds": 600.0,
    "clients": 16,
    "seed": 0,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("soak", METHOD, measure, OPTIONS, judge=True))
