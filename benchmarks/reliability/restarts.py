"""Reloads of a model, stops of the service, and processes that are killed and stopped, under load.

python -m benchmarks.reliability.restarts --results benchmarks/results/restarts.json
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.harness.common import Json, rounded, run_benchmark, target
from benchmarks.harness.processes import ROOT, ServerFailed, ServerProcess, service
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import post
from benchmarks.reliability.chaos import Chaos, kill_process
from benchmarks.reliability.soak import KnownAnswers, right_answers

METHOD: Final = (
    "`clients` good clients ask without a pause, each request on a new connection. Reloads: of a model, every second "
    "time from damaged files, which must be 400. Stops: SIGTERM after a second of load, which goes on until "
    "connections are refused; SIGKILL and SIGSTOP: of one of two processes, before it. lost: requests on connections "
    "that were not refused, without a response or with wrong bytes, in the worst round. slowest: from SIGTERM to the "
    "exit, or from the other signal to the next process"
)
DRAIN_S: Final = 5.0
SETTINGS: Final = {"IGN_ACCESS_LOG": "0", "IGN_DRAIN_S": f"{DRAIN_S:g}", "IGN_DEVICE": "cpu"}
SIGNALS: Final = ((1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGKILL), (2, signal.SIGSTOP))
NOT_ACCEPTED: Final = ConnectionRefusedError.__name__
LOAD: Final = post("/v2/repository/models/mnist/load", {})


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "models" / "mnist", Path(folder) / "mnist")
        with service(SETTINGS | {"IGN_MODEL_DIR": folder}) as server:
            reloads = uvloop.run(reload_often(server, Path(folder) / "mnist" / "5" / "model.onnx", options))
    stops = [stop_often(options, processes, number) for processes, number in SIGNALS]
    targets = [target(f"reloads: {what}", reloads[what], at_most=0) for what in ("failed", "unexpected_loads")]
    for line in stops:
        name, is_stop = f"{line['signal']}, {line['processes']} processes", line["signal"] == "SIGTERM"
        targets += [
            target(f"{name}: lost requests", line["lost"], at_most=0 if is_stop else 2 * options.clients),
            target(f"{name}: exit status other than 0", line["bad_exits"], at_most=0),
            target(f"{name}: slowest", line["slowest_s"], at_most=DRAIN_S + 2 if is_stop else 15.0, unit="s"),
        ]
    return {"targets": targets, "reloads": [reloads], "stops": stops}


async def reload_often(server: ServerProcess, file: Path, options: argparse.Namespace) -> Json:
    """Load the model again under load, every second time from damaged files."""
    whole, unexpected = await asyncio.to_thread(file.read_bytes), 0
    known = KnownAnswers(await right_answers(server.port))
    clients = [asyncio.create_task(known.work(server.port, float("inf"))) for _ in range(options.clients)]
    for number in range(options.reloads):
        data, expected = (whole[: len(whole) // 2], 400) if number % 2 else (whole, 200)
        await asyncio.to_thread(file.write_bytes, data)
        unexpected += (await fetch(server.port, LOAD)).status != expected
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    requests, failed = known.outcomes.total(), len(known.failures)
    return {"reloads": options.reloads, "requests": requests, "failed": failed, "unexpected_loads": unexpected}


def stop_often(options: argparse.Namespace, processes: int, number: signal.Signals) -> Json:
    """Start the service and stop it under load, again and again."""
    outcomes, bad_exits, stops, lost = Counter[str](), 0, list[float](), 0
    for _ in range(options.stops):
        with suppress(ServerFailed), service(SETTINGS | {"IGN_WORKERS": str(processes)}) as server:
            known, seconds = uvloop.run(stop(server, options.clients, number))
            stops.append(seconds)
            lost = max(lost, sum(outcome not in ("rejected", NOT_ACCEPTED) for outcome, *_ in known.failures))
            outcomes += known.outcomes
        bad_exits += server.status != 0
    return {"processes": processes, "signal": number.name, "stops": options.stops} | {
        "requests": outcomes.total(),
        "answered": outcomes["ok"],
        "lost": lost,
        "bad_exits": bad_exits,
        "slowest_s": rounded(max(stops)),
    }


async def stop(server: ServerProcess, clients: int, number: signal.Signals) -> tuple[KnownAnswers, float]:
    """Send the signal under load, and stop the service; returns what clients got, and the seconds that this took."""
    known = KnownAnswers(await right_answers(server.port))

    async def work() -> None:
        while await known.ask(server.port) != NOT_ACCEPTED:
            pass

    tasks = [asyncio.create_task(work()) for _ in range(clients)]
    await asyncio.sleep(1.0)
    times = [time.monotonic()]
    if number != signal.SIGTERM:
        await kill_process(Chaos(server, Path()), number)
        times.append(time.monotonic())
    os.kill(server.pid, signal.SIGTERM)
    await asyncio.to_thread(server.await_exit)
    times.append(time.monotonic())
    await asyncio.gather(*tasks)
    return known, times[1] - times[0]


OPTIONS: Final = {"reloads": (100, 4), "stops": (50, 2), "clients": (16,)}

if __name__ == "__main__":
    sys.exit(run_benchmark("restarts", METHOD, measure, OPTIONS, judge=True))
