"""Two worker processes: how the kernel spreads connections over them, and what that does to latency.

python -m benchmarks.bench_workers --results benchmarks/results/workers.json
"""

import argparse
import math
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Final

from benchmarks.bench_service import SETTINGS, png, project, run_load
from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    positive,
    report,
    rounded,
    run_benchmark,
)
from benchmarks.harness.processes import ROOT, ServerProcess, process_tree, service
from service.runtime.onnx_model import OnnxModel

METHOD = (
    "IGN_WORKERS=2; closed loops of keep-alive connections, a PNG in, a PNG out; each round connects anew. fuller: "
    "connections of the worker that has most, by its open files. summary: medians of the third of the rounds in which "
    "connections were spread most evenly, and of the third in which least. p99_over_mean: of the latencies of a round"
)
FULL = {"rounds": 30, "seconds": 3.0, "connections": [32, 256]}
QUICK = {"rounds": 2, "seconds": 0.5, "connections": [8]}
_POLL_S: Final = 0.1


def main() -> int:
    cli = arguments((__doc__ or "").splitlines()[0])
    cli.add_argument("--models", default=str(ROOT / "models"))
    cli.add_argument("--rounds", type=positive)
    cli.add_argument("--seconds", type=duration, help="of each round")
    cli.add_argument("--connections", type=positive, nargs="+")
    options = apply_defaults(cli.parse_args(), full=FULL, quick=QUICK)
    return run_benchmark(measure_all, options)


def measure_all(options: argparse.Namespace) -> Json:
    requests = project(png(OnnxModel((Path(options.models) / "mnist/3/model.onnx").read_bytes(), threads=1)))
    ours = {"IGN_MODEL_DIR": options.models, "IGN_DEFAULT_MODEL": "mnist", "IGN_DEVICE": "cpu", "IGN_WORKERS": "2"}
    with service(SETTINGS | ours) as server:
        rounds = [
            measure_round(server, requests, connections, options.seconds)
            for connections in options.connections
            for _ in range(options.rounds)
        ]
    return report("workers", METHOD, options, targets=[], summary=summary(rounds), rounds=rounds)


def measure_round(server: ServerProcess, requests: list[bytes], connections: int, seconds: float) -> Json:
    idle, fuller = open_files(server), 0
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run_load, server, requests, connections, seconds)
        while not load.done():
            time.sleep(_POLL_S)
            fuller = max(fuller, *(files - idle.get(pid, files) for pid, files in open_files(server).items()))
    result = load.result()
    ok = result["ok"]
    return {
        "connections": connections,
        "fuller": fuller,
        "requests_per_s": result["ok_per_s"],
        "p50_ms": ok["p50_ms"],
        "p99_ms": ok["p99_ms"],
        "p99_over_mean": rounded(ok["p99_ms"] / ok["mean_ms"]),
    }


def open_files(server: ServerProcess) -> dict[int, int]:
    """The number of open files of each process of the service."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in process_tree(server.pid)}


def summary(rounds: list[Json]) -> list[Json]:
    lines = []
    for connections in dict.fromkeys(each["connections"] for each in rounds):
        by_spread = sorted((each for each in rounds if each["connections"] == connections), key=itemgetter("fuller"))
        third = math.ceil(len(by_spread) / 3)
        for spread, chosen in (("most even", by_spread[:third]), ("least even", by_spread[-third:])):
            line = {"connections": connections, "spread": spread, "rounds": third}
            for name in ("fuller", "requests_per_s", "p50_ms", "p99_ms", "p99_over_mean"):
                line[name] = rounded(statistics.median(each[name] for each in chosen))
            lines.append(line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
