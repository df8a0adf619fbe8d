"""Good clients among bad ones, while parts of the service are killed, stopped and broken.

python -m benchmarks.reliability.chaos --results benchmarks/results/chaos.json
"""

import argparse
import asyncio
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.harness.common import Json, run_benchmark, target
from benchmarks.harness.processes import (
    ServerProcess,
    listening_sockets,
    service,
    serving_processes,
)
from benchmarks.reliability.attacks import BAD_CLIENTS, Attacker, attack, prepare, stopped
from benchmarks.reliability.soak import KnownAnswers, end_state, right_answers

METHOD: Final = (
    "`clients` good clients, and 96 that are slow, vanishing, oversized or malformed. One "
    "process for half of the time, two for the other half. Each fault of `FAULTS` happens "
    "once, at equal distances. An outage is declared for kills and stops, from the fault "
    "until `SETTLE_S` after it. good: answered with the right bytes, of all good requests "
    "that touch no outage; a 429 or 503 is not good. Wrong bytes always count"
)
SETTLE_S: Final = 3.0
STOPPED_S: Final = 2.0


@dataclass(slots=True)
class Chaos:
    """One half of a run; ``commands`` is the file that `faulty_service` follows."""

    server: ServerProcess
    commands: Path

    def command(self, line: str) -> None:
        with self.commands.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def await_successor(self, dead: int) -> None:
        """Wait until another process accepts connections in the place of a dead one."""
        while dead in (pids := serving_processes(self.server.pid)) or len(pids) < 2:
            time.sleep(0.1)
        while listening_sockets(self.server.port) < 2:
            time.sleep(0.1)


Fault = Callable[[Chaos], Awaitable[None]]


async def kill_thread(chaos: Chaos) -> None:
    chaos.command("kill")


async def clock_jump(chaos: Chaos) -> None:
    for seconds in (86_400, -86_400, 0):
        chaos.command(f"clock {seconds}")
        await asyncio.sleep(0.5)


async def disk_full(chaos: Chaos) -> None:
    """No file can grow, so the log cannot be written."""
    limits = resource.prlimit(chaos.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(chaos.server.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    await asyncio.sleep(STOPPED_S)
    resource.prlimit(chaos.server.pid, resource.RLIMIT_FSIZE, limits)


async def stop_process(chaos: Chaos) -> None:
    pid = next(iter(serving_processes(chaos.server.pid)), chaos.server.pid)
    await stopped(pid, STOPPED_S)


async def kill_process(chaos: Chaos, number: int = signal.SIGKILL) -> None:
    dead = serving_processes(chaos.server.pid)[0]
    os.kill(dead, number)
    await asyncio.to_thread(chaos.await_successor, dead)


FAULTS: Final[dict[int, tuple[Fault, ...]]] = {
    1: (kill_thread, clock_jump, disk_full, stop_process),
    2: (kill_process, stop_process, kill_process),
}
OUTAGES: Final = (kill_thread, stop_process, kill_process)


def measure(options: argparse.Namespace) -> Json:
    halves = [half(options, processes) for processes in FAULTS]
    targets = []
    for line in halves:
        name = f"{line['processes']} processes"
        targets += [
            target(f"{name}: good requests outside outages", line["good_share"], at_least=0.999),
            target(f"{name}: wrong bytes", line["wrong"], at_most=0),
            target(
                f"{name}: faults with another result than expected", line["unexpected"], at_most=0
            ),
        ]
    return {"targets": targets, "halves": halves}


def half(options: argparse.Namespace, processes: int) -> Json:
    """Half of the run, with a service of one or two processes."""
    with tempfile.TemporaryDirectory() as folder:
        commands = Path(folder) / "commands"
        commands.touch()
        # only its own process can make the faults of one
        module = (
            ("benchmarks.reliability.faulty_service", str(commands))
            if processes == 1
            else ("service",)
        )
        settings = {"IGN_DEVICE": "cpu", "IGN_WORKERS": str(processes)}
        with service(settings, module) as server:
            chaos = Chaos(server, commands)
            known, outages = uvloop.run(run(chaos, options, FAULTS[processes]))
            ready = server.get("/readyz")[0]
            replaced = end_state(server)["workers replaced"]
    unexpected = [f"at the end /readyz is {ready}"] * (ready != 200)
    unexpected += [f"{replaced:.0f} threads were replaced"] * (replaced != (processes == 1))
    outside = [
        outcome
        for outcome, sent, ended in known.failures
        if not any(sent <= end and ended >= start for start, end in outages)
    ]
    good = known.outcomes["ok"]
    return {
        "processes": processes,
        "good_requests": known.outcomes.total(),
        "outages": len(outages),
        "failed_in_outages": len(known.failures) - len(outside),
        "failed_outside": len(outside),
        "good_share": good / max(1, good + len(outside)),
        "wrong": known.outcomes["wrong"],
        "unexpected": len(unexpected),
        "reasons": "; ".join(sorted({*outside, *unexpected})),
    }


async def run(
    chaos: Chaos, options: argparse.Namespace, faults: tuple[Fault, ...]
) -> tuple[KnownAnswers, list[tuple[float, float]]]:
    """What good clients got, and start and end of each declared outage, in `time.monotonic`."""
    known = KnownAnswers(await right_answers(chaos.server.port))
    outages = list[tuple[float, float]]()
    seconds = options.seconds / 2
    port = chaos.server.port
    attacker = Attacker(port, chaos.server.pid)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(prepare, BAD_CLIENTS)
        async with known.asked_by(options.clients, port, pause_s=0.5):
            bad = asyncio.get_running_loop().run_in_executor(
                pool, attack, BAD_CLIENTS, seconds, attacker
            )
            for fault in faults:
                await asyncio.sleep(seconds / (len(faults) + 1))
                start = time.monotonic()
                await fault(chaos)
                if fault in OUTAGES:
                    outages.append((start, time.monotonic() + SETTLE_S))
            await bad
    return known, outages


OPTIONS: Final = {"seconds": (600.0, 20.0), "clients": (160,)}

if __name__ == "__main__":
    sys.exit(run_benchmark("chaos", METHOD, measure, OPTIONS, judge=True))
