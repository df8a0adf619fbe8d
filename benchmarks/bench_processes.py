"""Processes: default settings beside one process and one thread, and how connections spread over two.

    python -m benchmarks.bench_processes --results benchmarks/results/processes.json

The default must not be slower than the best of the others, whether HTTP or the model is the limit.
"""

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from benchmarks.bench_service import SETTINGS, generate, project
from benchmarks.harness.common import Json, each_round, in_turn, median_ratio, rounded, run_benchmark, target
from benchmarks.harness.processes import ServerProcess, process_tree, service
from benchmarks.load_generator.load import run_load, summary
from benchmarks.load_generator.messages import NPY

METHOD: Final = (
    "Closed loops of keep-alive connections over loopback. variants: default settings, IGN_WORKERS=1 and "
    "IGN_THREADS=1 in turn; share: requests/s of the default over those of the best other, round by round; 1 row is "
    "an image, PNG to PNG, 8 and 64 rows are /generate as npy. spread: two processes; each round connects anew. "
    "fuller: connections of the process that has most, by its open files; p99_over_mean: of the latencies of a round"
)
VARIANTS: Final = {"default": {}, "one_process": {"IGN_WORKERS": "1"}, "one_thread": {"IGN_THREADS": "1"}}


def measure(options: argparse.Namespace) -> Json:
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(service(SETTINGS | more)) for name, more in VARIANTS.items()}
        loads = itertools.product((1, 8, 64), options.connections)
        variants = [compare_variants(servers, rows, connections, options) for rows, connections in loads]
    with service(SETTINGS | {"IGN_DEVICE": "cpu", "IGN_WORKERS": "2"}) as server:
        rounds = itertools.product(options.connections, range(3 * options.rounds))
        spread = [one_round(server, connections, options.seconds) for connections, _ in rounds]
    least = min(line["share"] for line in variants)
    return {
        "targets": [target("default over the best of the others, least of all loads", least, at_least=0.97)],
        "variants": variants,
        "spread": sorted(spread, key=lambda line: (line["connections"], line["fuller"])),
    }


def compare_variants(
    servers: Mapping[str, ServerProcess], rows: int, connections: int, options: argparse.Namespace
) -> Json:
    requests = project() if rows == 1 else generate(NPY, rows)
    ways = {name: partial(run_load, server, requests, connections, options.seconds) for name, server in servers.items()}
    rounds = in_turn(ways, options.rounds)
    default, *others = (each_round(results, "ok_per_s") for results in rounds.values())
    line: Json = {"rows": rows, "connections": connections}
    line["share"] = min(median_ratio(default, other) for other in others)
    for figure in ("requests_per_s", "server_core_ms"):
        line[figure] = {name: summary(results)[figure] for name, results in rounds.items()}
    return line


def one_round(server: ServerProcess, connections: int, seconds: float) -> Json:
    idle, fuller = open_files(server), 0
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run_load, server, project(), connections, seconds)
        while not load.done():
            time.sleep(0.1)
            fuller = max(fuller, *(files - idle.get(pid, files) for pid, files in open_files(server).items()))
    result, ok = load.result(), load.result()["ok"]
    line = {"connections": connections, "fuller": fuller, "requests_per_s": result["ok_per_s"], "p99_ms": ok["p99_ms"]}
    return line | {"p99_over_mean": rounded(ok["p99_ms"] / ok["mean_ms"])}


def open_files(server: ServerProcess) -> dict[int, int]:
    """The number of open files of each process of the service."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in process_tree(server.pid)}


OPTIONS: Final = {"rounds": (5, 1), "seconds": (2.0, 0.3), "connections": ([1, 8, 32, 256], [8])}

if __name__ == "__main__":
    sys.exit(run_benchmark("processes", METHOD, measure, OPTIONS))
