"""Reloads of a model, stops of the service, and processes that are killed and stopped, under load.

python -m benchmarks.reliability.restarts --results benchmarks/results/restarts.json
"""

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.harness.common import REF, Json, run_benchmark, target
from benchmarks.harness.processes import ROOT, STOP_S, ServerFailed, ServerProcess, service
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import post
from benchmarks.reliability.chaos import replaced
from benchmarks.reliability.soak import KnownAnswers, right_answers

METHOD: Final = (
    "`clients` good clients ask without a pause, each request on a new connection. Reloads: "
    "of a model, every second time from damaged files, which must be 400. Stops: SIGTERM "
    "after a second of load, which goes on until connections are refused; SIGKILL and "
    "SIGSTOP: of one of two processes, before it. lost: requests on connections that were "
    "not refused, without a response or with wrong bytes, in the worst round. slowest: from "
    "SIGTERM to the exit, or from the other signal until the next process accepts connections"
)
DRAIN_S: Final = 5.0
SETTINGS: Final = {"IGN_ACCESS_LOG": "0", "IGN_DRAIN_S": f"{DRAIN_S:g}", "IGN_DEVICE": "cpu"}
SIGNALS: Final = (
    (1, signal.SIGTERM),
    (2, signal.SIGTERM),
    (2, signal.SIGKILL),
    (2, signal.SIGSTOP),
)
NOT_ACCEPTED: Final = ConnectionRefusedError.__name__
LOAD: Final = post("/v2/repository/models/mnist/load", {})


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "models" / "mnist", Path(folder) / "mnist")
        settings = SETTINGS | {"IGN_MODEL_DIR": folder}
        stops = [stop_often(options, settings, processes, number) for processes, number in SIGNALS]
        with service(settings) as server:
            reloads = uvloop.run(reload_often(server, Path(folder) / REF / "model.onnx", options))
    targets = [
        target(f"reloads: {what}", reloads[what], at_most=0)
        for what in ("failed", "unexpected_loads")
    ]
    for line in stops:
        lost, slowest_s = (
            (0, DRAIN_S + 2) if line["signal"] == "SIGTERM" else (2 * options.clients, 15.0)
        )
        name = f"{line['signal']}, {line['processes']} processes"
        targets += [
            target(f"{name}: lost requests", line["lost"], at_most=lost),
            target(f"{name}: exit status other than 0", line["bad_exits"], at_most=0),
            target(f"{name}: slowest", line["slowest_s"], at_most=slowest_s, unit="s"),
        ]
    return {"targets": targets, "reloads": [reloads], "stops": stops}


async def reload_often(server: ServerProcess, file: Path, options: argparse.Namespace) -> Json:
    """Load the model again under load, every second time from damaged files."""
    whole = await asyncio.to_thread(file.read_bytes)
    unexpected = 0
    known = KnownAnswers(await right_answers(server.port))
    async with known.asked_by(options.clients, server.port):
        for number in range(options.reloads):
            data, expected = (whole[: len(whole) // 2], 400) if number % 2 else (whole, 200)
            await asyncio.to_thread(file.write_bytes, data)
            unexpected += (await fetch(server.port, LOAD)).status != expected
    return {
        "reloads": options.reloads,
        "requests": known.outcomes.total(),
        "failed": len(known.failures),
        "unexpected_loads": unexpected,
    }


def stop_often(
    options: argparse.Namespace, settings: dict[str, str], processes: int, number: signal.Signals
) -> Json:
    """Send the signal under load, again and again, to another service each time: one that dies
    often waits.
    """
    bad_exits = 0
    rounds = list[tuple[KnownAnswers, float]]()
    for _ in range(options.stops):
        with suppress(ServerFailed), service(settings | {"IGN_WORKERS": str(processes)}) as server:
            rounds.append(uvloop.run(send_signal(server, options.clients, number)))
        bad_exits += server.status != 0
    failures = [known.failures for known, _ in rounds]
    return {
        "processes": processes,
        "signal": number.name,
        "signals": len(rounds),
        "requests": sum(known.outcomes.total() for known, _ in rounds),
        "answered": sum(known.outcomes["ok"] for known, _ in rounds),
        "lost": max(
            sum(outcome not in ("rejected", NOT_ACCEPTED) for outcome, *_ in each)
            for each in failures
        ),
        "bad_exits": bad_exits,
        "slowest_s": max(seconds for _, seconds in rounds),
    }


async def send_signal(
    server: ServerProcess, clients: int, number: signal.Signals
) -> tuple[KnownAnswers, float]:
    """What clients got, and the seconds until the exit or until the next process is there."""
    known = KnownAnswers(await right_answers(server.port))
    async with known.asked_by(clients, server.port):
        await asyncio.sleep(1.0)
        began = time.monotonic()
        if number == signal.SIGTERM:
            os.kill(server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(server.process.wait, STOP_S)
        else:
            await asyncio.to_thread(replaced, server, number)
        seconds = time.monotonic() - began
    return known, seconds


OPTIONS: Final = {
    "reloads": 100,
    "stops": 100,
    "clients": 16,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("restarts", METHOD, measure, OPTIONS, judge=True))
