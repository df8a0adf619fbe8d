"""Reloads of a model and stops of the service under load.

    python -m benchmarks.reliability.restarts --results benchmarks/results/restarts.json

Exits with status 0 if no request failed, no answer was wrong and every stop was clean, else with 1.
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
from benchmarks.reliability.soak import KnownAnswers, right_answer

METHOD: Final = (
    "`clients` good clients ask without a pause, each request on a new connection. Reloads: the model is loaded again "
    "and again, and every second time its files are damaged, which must be 400. Stops: SIGTERM after a second "
    "of load, which goes on until connections are refused; lost is a request on a connection that was not refused, "
    "and that gets no response or wrong bytes. slowest stop: from signal to exit, which may take IGN_DRAIN_S + 2 s"
)
DRAIN_S: Final = 5.0
SETTINGS: Final = {"IGN_ACCESS_LOG": "0", "IGN_DRAIN_S": f"{DRAIN_S:g}", "IGN_DEVICE": "cpu"}
NOT_ACCEPTED: Final = ConnectionRefusedError.__name__
LOAD: Final = post("/v2/repository/models/mnist/load", {})


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "models" / "mnist", Path(folder) / "mnist")
        with service(SETTINGS | {"IGN_MODEL_DIR": folder}) as server:
            reloads = uvloop.run(reload_often(server, Path(folder) / "mnist" / "4" / "model.onnx", options))
    stops = [stop_often(options, processes) for processes in (1, 2)]
    targets = [
        target("reloads: failed or wrong requests", reloads["failed"], at_most=0),
        target("reloads: loads with another outcome than expected", reloads["unexpected_loads"], at_most=0),
    ]
    for line in stops:
        name = f"stops, {line['processes']} processes"
        targets += [
            target(f"{name}: lost or wrong requests", line["lost"], at_most=0),
            target(f"{name}: exit status other than 0", line["bad_exits"], at_most=0),
            target(f"{name}: slowest stop", line["slowest_stop_s"], at_most=DRAIN_S + 2, unit="s"),
        ]
    return {"targets": targets, "reloads": [reloads], "stops": stops}


async def reload_often(server: ServerProcess, file: Path, options: argparse.Namespace) -> Json:
    """Load the model again under load, every second time from damaged files."""
    whole, unexpected = await asyncio.to_thread(file.read_bytes), 0
    known = KnownAnswers(await right_answer(server.port))
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


def stop_often(options: argparse.Namespace, processes: int) -> Json:
    """Start the service and stop it under load, again and again."""
    outcomes, bad_exits, stops = Counter[str](), 0, list[float]()
    for _ in range(options.stops):
        with suppress(ServerFailed), service(SETTINGS | {"IGN_WORKERS": str(processes)}) as server:
            known, seconds = uvloop.run(stop(server, options))
            stops.append(seconds)
            outcomes += known.outcomes
        bad_exits += server.status != 0
    return {
        "processes": processes,
        "stops": options.stops,
        "requests": outcomes.total(),
        "answered": outcomes["ok"],
        "rejected": outcomes["rejected"],
        "lost": outcomes.total() - sum(outcomes[of] for of in ("ok", "rejected", NOT_ACCEPTED)),
        "bad_exits": bad_exits,
        "slowest_stop_s": rounded(max(stops)),
    }


async def stop(server: ServerProcess, options: argparse.Namespace) -> tuple[KnownAnswers, float]:
    """Stop the service under load; returns what clients got, and the seconds from the signal to the exit."""
    known = KnownAnswers(await right_answer(server.port))

    async def work() -> None:
        while await known.ask(server.port) != NOT_ACCEPTED:
            pass

    clients = [asyncio.create_task(work()) for _ in range(options.clients)]
    await asyncio.sleep(1.0)
    begin = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    await asyncio.to_thread(server.await_exit)
    seconds = time.monotonic() - begin
    await asyncio.gather(*clients)
    return known, seconds


OPTIONS: Final = {"reloads": (100, 4), "stops": (50, 2), "clients": (16,)}

if __name__ == "__main__":
    sys.exit(run_benchmark("restarts", METHOD, measure, OPTIONS, judge=True))
