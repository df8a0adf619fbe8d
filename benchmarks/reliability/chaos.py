"""Good clients among bad ones, while parts of the service are killed, stopped and broken.

    python -m benchmarks.reliability.chaos --results benchmarks/results/chaos.json

Exits with status 0 if every target is met, else with 1.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    positive,
    report,
    rounded,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import (
    ROOT,
    ServerProcess,
    free_port,
    process_tree,
    service,
    serving,
    without_settings,
)
from benchmarks.load_generator.fetch import fetch
from benchmarks.reliability.known_answer import KnownAnswers, right_answer
from benchmarks.reliability.restarts import LOAD, write_model
from benchmarks.soak import end_state

METHOD = (
    "`clients` clients: five eighths good, the others slow, vanishing, oversized or malformed, an equal part each. One "
    "process for half of the time, two for the other half, or with --engine-process two and an engine all the time. "
    "Each fault of `ONE_PROCESS` and `TWO_PROCESSES`, or of `ENGINE_PROCESS`, happens once, at equal distances. An "
    "outage is declared for kills and stops, from the fault until `SETTLE_S` after it. good: answered with the right "
    "bytes, of all good requests that touch no outage; a 429 or 503 is not good. Wrong bytes always count."
)
FULL = {"seconds": 600.0}
QUICK = {"seconds": 20.0}
SETTLE_S: Final = 3.0
STOPPED_S: Final = 2.0
PAUSE_S: Final = 0.5
READY_ANSWERS: Final = 16
DAY_S: Final = 86_400


@dataclass(slots=True)
class Chaos:
    """One half of a run.

    Args:
        server: the service.
        commands: the file that `faulty_service` follows.
        model: the ONNX file that is served.
        has_engine: whether a further process runs the models.
        outages: start and end of each declared outage, in `time.monotonic`, and whether 503 is all that may happen.
        unexpected: faults that the service did not answer as expected.
    """

    server: ServerProcess
    commands: Path
    model: Path
    has_engine: bool
    outages: list[tuple[float, float, bool]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def outage(self, *, clean: bool = False) -> Iterator[None]:
        """Declare an outage from here until `SETTLE_S` after the block; ``clean``: requests may get 503, no worse."""
        start = time.monotonic()
        yield
        self.outages.append((start, time.monotonic() + SETTLE_S, clean))

    def command(self, line: str) -> None:
        with self.commands.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def await_workers(self, dead: int) -> None:
        """Wait until another process has taken the place of a dead one."""
        while dead in (pids := self._children()) or len(pids) < 2 + self.has_engine:
            time.sleep(0.1)

    def await_ready(self) -> None:
        """Wait until every process is ready: each of several connections gets one by chance."""
        ready = 0
        while ready < READY_ANSWERS:
            ready = ready + 1 if self.server.get("/readyz")[0] == 200 else 0

    def workers(self) -> list[int]:
        """The serving processes."""
        return [pid for pid in self._children() if not (self.has_engine and pid == self.engine())]

    def engine(self) -> int:
        """The process that runs the models: it shares memory with each of the others."""
        return max(self._children(), key=lambda pid: _read(pid, "maps").count(b"ign-slots"))

    def _children(self) -> list[int]:
        """Without those that only keep resources."""
        return [pid for pid in process_tree(self.server.pid)[1:] if b"spawn_main" in _read(pid, "cmdline")]


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


Fault = Callable[[Chaos], Awaitable[None]]


async def kill_thread(chaos: Chaos) -> None:
    with chaos.outage():
        chaos.command("kill")


async def clock_jump(chaos: Chaos) -> None:
    for seconds in (DAY_S, -DAY_S, 0):
        chaos.command(f"clock {seconds}")
        await asyncio.sleep(0.5)


async def disk_full(chaos: Chaos) -> None:
    """No file can grow, so the log cannot be written."""
    limits = resource.prlimit(chaos.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(chaos.server.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    await asyncio.sleep(STOPPED_S)
    resource.prlimit(chaos.server.pid, resource.RLIMIT_FSIZE, limits)


async def broken_model(chaos: Chaos) -> None:
    whole = await asyncio.to_thread(chaos.model.read_bytes)
    for data, expected in ((whole[: len(whole) // 2], 400), (whole, 200)):
        write_model(chaos.model, data)
        answer = await fetch(chaos.server.port, LOAD)
        if answer.status != expected:
            chaos.unexpected.append(f"load: {answer.status}, not {expected}")


async def stop_process(chaos: Chaos) -> None:
    with chaos.outage():
        pid = next(iter(chaos.workers()), chaos.server.pid)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)


async def kill_process(chaos: Chaos) -> None:
    with chaos.outage():
        dead = chaos.workers()[0]
        os.kill(dead, signal.SIGKILL)
        await asyncio.to_thread(chaos.await_workers, dead)


async def stop_engine(chaos: Chaos) -> None:
    with chaos.outage(clean=True):
        pid = chaos.engine()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)


async def kill_engine(chaos: Chaos) -> None:
    with chaos.outage(clean=True):
        dead = chaos.engine()
        os.kill(dead, signal.SIGKILL)
        await asyncio.to_thread(chaos.await_workers, dead)
        await asyncio.to_thread(chaos.await_ready)


ONE_PROCESS: Final[tuple[Fault, ...]] = (kill_thread, clock_jump, disk_full, broken_model, stop_process)
TWO_PROCESSES: Final[tuple[Fault, ...]] = (kill_process, stop_process, kill_process)
ENGINE_PROCESS: Final[tuple[Fault, ...]] = (
    broken_model,
    kill_engine,
    stop_engine,
    kill_process,
    stop_process,
    kill_engine,
)


def main() -> int:
    return run_benchmark(measure, apply_defaults(parser().parse_args(), full=FULL, quick=QUICK), judge=True)


def measure(options: argparse.Namespace) -> Json:
    halves = [half(options, 2)] if options.engine_process else [half(options, workers) for workers in (1, 2)]
    targets = []
    for line in halves:
        name = f"{line['processes']} processes"
        targets += [
            target(f"{name}: good requests outside outages", line["good_share"], at_least=0.999),
            target(f"{name}: wrong bytes", line["wrong"], at_most=0),
            target(f"{name}: faults with another result than expected", line["unexpected"], at_most=0),
        ]
    return report("chaos", METHOD, options, targets=targets, halves=halves)


def half(options: argparse.Namespace, workers: int) -> Json:
    """Half of the run, with a service of one or two processes; or all of it, with two and an engine."""
    faults = ENGINE_PROCESS if options.engine_process else ONE_PROCESS if workers == 1 else TWO_PROCESSES
    with tempfile.TemporaryDirectory() as folder:
        commands, models = Path(folder) / "commands", Path(folder) / "models"
        commands.touch()
        shutil.copytree(ROOT / "models" / "mnist", models / "mnist")
        settings = {"IGN_MODEL_DIR": str(models), "IGN_DEVICE": "cpu", "IGN_WORKERS": str(workers)}
        settings["IGN_ENGINE_PROCESS"] = str(options.engine_process).lower()
        with started(settings, commands) as server:
            chaos = Chaos(server, commands, models / "mnist" / "3" / "model.onnx", options.engine_process)
            seconds = options.seconds if options.engine_process else options.seconds / 2
            known = uvloop.run(run(chaos, options, faults, seconds))
            ready, replaced = server.get("/readyz")[0], end_state(server)["workers replaced"]
    if ready != 200:
        chaos.unexpected.append(f"at the end /readyz is {ready}")
    if replaced != (kill_thread in faults):
        chaos.unexpected.append(f"{replaced:.0f} threads were replaced")
    outside = [outcome for outcome, *times in known.failures if not outages_of(chaos, *times)]
    chaos.unexpected += [
        f"{outcome} in an outage that allows 503"
        for outcome, *times in known.failures
        if outcome != "refused" and (touched := outages_of(chaos, *times)) and all(clean for *_, clean in touched)
    ]
    total = known.outcomes["ok"] + len(outside)
    return {
        "processes": workers,
        "good_requests": known.outcomes.total(),
        "outages": len(chaos.outages),
        "failed_in_outages": len(known.failures) - len(outside),
        "failed_outside": len(outside),
        "good_share": rounded(known.outcomes["ok"] / max(1, total)),
        "wrong": known.outcomes["wrong"],
        "unexpected": len(chaos.unexpected),
        "reasons": "; ".join([*sorted(set(outside)), *sorted(set(chaos.unexpected))]),
    }


def started(settings: dict[str, str], commands: Path) -> AbstractContextManager[ServerProcess]:
    """A service of one process with `faulty_service`, of several without."""
    if settings["IGN_WORKERS"] != "1":
        return service(settings)
    port = free_port()
    environ = without_settings() | settings | {"IGN_PORT": str(port)}
    command = [sys.executable, "-m", "benchmarks.reliability.faulty_service", str(commands)]
    return serving(command, port=port, ready="/readyz", environ=environ)


def outages_of(chaos: Chaos, sent: float, ended: float) -> list[tuple[float, float, bool]]:
    """The declared outages that a request overlaps."""
    return [outage for outage in chaos.outages if sent <= outage[1] and ended >= outage[0]]


async def run(chaos: Chaos, options: argparse.Namespace, faults: tuple[Fault, ...], seconds: float) -> KnownAnswers:
    known = KnownAnswers(await right_answer(chaos.server.port))
    end = time.monotonic() + seconds
    good = options.clients * 5 // 8
    tasks = [asyncio.create_task(known.work(chaos.server.port, end, PAUSE_S)) for _ in range(good)]
    given = (chaos.server.port, options.clients - good, seconds, options.seed)
    command = [sys.executable, "-m", "benchmarks.reliability.bad_clients", *map(str, given)]
    bad = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    for fault in faults:
        await asyncio.sleep(seconds / (len(faults) + 1))
        await fault(chaos)
    await asyncio.gather(*tasks)
    await bad.wait()
    return known


def parser() -> argparse.ArgumentParser:
    cli = arguments("Break parts of the service under load.")
    cli.add_argument("--seconds", type=duration, help="how long, both halves together (default 600; quick 20)")
    cli.add_argument("--clients", type=positive, default=256, help="clients (default 256)")
    cli.add_argument("--engine-process", action="store_true", help="with an engine process, see IGN_ENGINE_PROCESS")
    cli.add_argument("--seed", type=int, default=0, help="seed of the bad clients (default 0)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
