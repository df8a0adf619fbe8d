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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.harness.common import Json, rounded, run_benchmark, target
from benchmarks.harness.processes import ROOT, ServerProcess, free_port, process_tree, serving, without_settings
from benchmarks.load_generator.fetch import fetch
from benchmarks.reliability.attacks import BAD_CLIENTS
from benchmarks.reliability.restarts import LOAD
from benchmarks.reliability.soak import KnownAnswers, end_state, right_answer

METHOD = (
    "`clients` clients: five eighths good, the others slow, vanishing, oversized or malformed. One process for half "
    "of the time, two for the other half. Each fault of `ONE_PROCESS` and `TWO_PROCESSES` happens once, at equal "
    "distances. An outage is declared for kills and stops, from the fault until `SETTLE_S` after it. good: answered "
    "with the right bytes, of all good requests that touch no outage; a 429 or 503 is not good. Wrong bytes always "
    "count"
)
SETTLE_S: Final = 3.0
STOPPED_S: Final = 2.0
PAUSE_S: Final = 0.5
DAY_S: Final = 86_400


@dataclass(slots=True)
class Chaos:
    """One half of a run.

    Args:
        commands: the file that `faulty_service` follows.
        model: the ONNX file that is served.
        outages: start and end of each declared outage, in `time.monotonic`.
        unexpected: faults with another result than expected.
    """

    server: ServerProcess
    commands: Path
    model: Path
    outages: list[tuple[float, float]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Declare an outage from here until `SETTLE_S` after the block."""
        start = time.monotonic()
        yield
        self.outages.append((start, time.monotonic() + SETTLE_S))

    def command(self, line: str) -> None:
        with self.commands.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def processes(self) -> list[int]:
        """The serving processes below the first one, without those that only keep resources."""

        def serves(pid: int) -> bool:
            with contextlib.suppress(OSError):
                return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            return False

        return [pid for pid in process_tree(self.server.pid)[1:] if serves(pid)]

    def await_successor(self, dead: int) -> None:
        """Wait until another process has taken the place of a dead one."""
        while dead in (pids := self.processes()) or len(pids) < 2:
            time.sleep(0.1)


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
        await asyncio.to_thread(chaos.model.write_bytes, data)
        answer = await fetch(chaos.server.port, LOAD)
        if answer.status != expected:
            chaos.unexpected.append(f"load: {answer.status}, not {expected}")


async def stop_process(chaos: Chaos) -> None:
    with chaos.outage():
        pid = next(iter(chaos.processes()), chaos.server.pid)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)


async def kill_process(chaos: Chaos) -> None:
    with chaos.outage():
        dead = chaos.processes()[0]
        os.kill(dead, signal.SIGKILL)
        await asyncio.to_thread(chaos.await_successor, dead)


ONE_PROCESS: Final[tuple[Fault, ...]] = (kill_thread, clock_jump, disk_full, broken_model, stop_process)
TWO_PROCESSES: Final[tuple[Fault, ...]] = (kill_process, stop_process, kill_process)


def measure(options: argparse.Namespace) -> Json:
    halves = [half(options, 1, ONE_PROCESS), half(options, 2, TWO_PROCESSES)]
    targets = []
    for line in halves:
        name = f"{line['processes']} processes"
        targets += [
            target(f"{name}: good requests outside outages", line["good_share"], at_least=0.999),
            target(f"{name}: wrong bytes", line["wrong"], at_most=0),
            target(f"{name}: faults with another result than expected", line["unexpected"], at_most=0),
        ]
    return {"targets": targets, "halves": halves}


def half(options: argparse.Namespace, processes: int, faults: tuple[Fault, ...]) -> Json:
    """Half of the run, with a service of one or two processes."""
    with tempfile.TemporaryDirectory() as folder:
        commands, models = Path(folder) / "commands", Path(folder) / "models"
        commands.touch()
        shutil.copytree(ROOT / "models" / "mnist", models / "mnist")
        settings = {"IGN_MODEL_DIR": str(models), "IGN_DEVICE": "cpu", "IGN_WORKERS": str(processes)}
        port = free_port()
        environ = without_settings() | settings | {"IGN_PORT": str(port)}
        module = ["benchmarks.reliability.faulty_service", str(commands)] if processes == 1 else ["service"]
        with serving([sys.executable, "-m", *module], port=port, ready="/readyz", environ=environ) as server:
            chaos = Chaos(server, commands, models / "mnist" / "3" / "model.onnx")
            known = uvloop.run(run(chaos, options, faults))
            ready, replaced = server.get("/readyz")[0], end_state(server)["workers replaced"]
    if ready != 200:
        chaos.unexpected.append(f"at the end /readyz is {ready}")
    if replaced != (kill_thread in faults):
        chaos.unexpected.append(f"{replaced:.0f} threads were replaced")
    outside = [
        outcome
        for outcome, sent, ended in known.failures
        if not any(sent <= end and ended >= start for start, end in chaos.outages)
    ]
    return {
        "processes": processes,
        "good_requests": known.outcomes.total(),
        "outages": len(chaos.outages),
        "failed_in_outages": len(known.failures) - len(outside),
        "failed_outside": len(outside),
        "good_share": rounded(known.outcomes["ok"] / max(1, known.outcomes["ok"] + len(outside))),
        "wrong": known.outcomes["wrong"],
        "unexpected": len(chaos.unexpected),
        "reasons": "; ".join([*sorted(set(outside)), *sorted(set(chaos.unexpected))]),
    }


async def run(chaos: Chaos, options: argparse.Namespace, faults: tuple[Fault, ...]) -> KnownAnswers:
    known = KnownAnswers(await right_answer(chaos.server.port))
    seconds, good = options.seconds / 2, options.clients * 5 // 8
    end = time.monotonic() + seconds
    tasks = [asyncio.create_task(known.work(chaos.server.port, end, PAUSE_S)) for _ in range(good)]
    given = (BAD_CLIENTS, chaos.server.port, seconds, options.clients - good, options.seed)
    command = [sys.executable, "-m", "benchmarks.reliability.attacks", *map(str, given)]
    bad = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    for fault in faults:
        await asyncio.sleep(seconds / (len(faults) + 1))
        await fault(chaos)
    await asyncio.gather(*tasks)
    await bad.wait()
    return known


OPTIONS: Final = {"seconds": (600.0, 20.0), "clients": (256,), "seed": (0,)}

if __name__ == "__main__":
    sys.exit(run_benchmark("chaos", METHOD, measure, OPTIONS, judge=True))
