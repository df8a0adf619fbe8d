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


# makes a fault of a service, which follows the commands in the file
Fault = Callable[[ServerProcess, Path], Awaitable[None]]


def command(commands: Path, line: str) -> None:
    with commands.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


async def kill_thread(_: ServerProcess, commands: Path) -> None:
    command(commands, "kill")


async def clock_jump(_: ServerProcess, commands: Path) -> None:
    for seconds in (86_400, -86_400, 0):
        command(commands, f"clock {seconds}")
        await asyncio.sleep(0.5)


async def disk_full(server: ServerProcess, _: Path) -> None:
    """No file can grow, so the log cannot be written."""
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    await asyncio.sleep(STOPPED_S)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)


async def stop_process(server: ServerProcess, _: Path) -> None:
    await stopped(next(iter(serving_processes(server.pid)), server.pid), STOPPED_S)


async def kill_process(server: ServerProcess, _: Path) -> None:
    await asyncio.to_thread(replaced, server, signal.SIGKILL)


def replaced(server: ServerProcess, number: signal.Signals) -> None:
    """Send a signal to a process, and wait until another one accepts connections in its place."""
    dead = serving_processes(server.pid)[0]
    os.kill(dead, number)
    while (
        dead in (pids := serving_processes(server.pid))
        or min(len(pids), listening_sockets(server.port)) < 2
    ):
        time.sleep(0.1)


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
            known, outages = uvloop.run(run(server, commands, options, FAULTS[processes]))
            ready = server.get("/readyz")[0]
            workers = end_state(server)["workers replaced"]
    unexpected = [f"at the end /readyz is {ready}"] * (ready != 200)
    unexpected += [f"{workers:.0f} threads were replaced"] * (workers != (processes == 1))
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
    server: ServerProcess, commands: Path, options: argparse.Namespace, faults: tuple[Fault, ...]
) -> tuple[KnownAnswers, list[tuple[float, float]]]:
    """What good clients got, and start and end of each declared outage, in `time.monotonic`."""
    known = KnownAnswers(await right_answers(server.port))
    outages = list[tuple[float, float]]()
    seconds = options.seconds / 2
    attacker = Attacker(server.port, server.pid)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(prepare, BAD_CLIENTS)
        async with known.asked_by(options.clients, server.port, pause_s=0.5):
            bad = asyncio.get_running_loop().run_in_executor(
                pool, attack, BAD_CLIENTS, seconds, attacker
            )
            for fault in faults:
                await asyncio.sleep(seconds / (len(faults) + 1))
                start = time.monotonic()
                await fault(server, commands)
                if fault in OUTAGES:
                    outages.append((start, time.monotonic() + SETTLE_S))
            await bad
    return known, outages


OPTIONS: Final = {
    "seconds": 600.0,
    "clients": 160,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("chaos", METHOD, measure, OPTIONS, judge=True))
