"""Default settings beside one model instance and beside one thread.

    python -m benchmarks.bench_processes --results benchmarks/results/processes.json

The default must not be slower than the best of the others, whether HTTP or the model is the limit.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Mapping
from functools import partial
from typing import Final

from benchmarks.bench_service import SETTINGS, generate, project
from benchmarks.harness.common import Json, each_round, in_turn, median_ratio, run_benchmark, target
from benchmarks.harness.processes import ServerProcess, service
from benchmarks.load_generator.load import run_load, summary
from benchmarks.load_generator.messages import NPY

METHOD: Final = (
    "Closed loops of keep-alive connections over loopback: default settings, IGN_CPU_INSTANCES=1 and IGN_THREADS=1 in "
    "turn. share: requests/s of the default over those of the best other, round by round; 1 row is an image, PNG to "
    "PNG, 8 and 64 rows are /generate as npy"
)
VARIANTS: Final = {"default": {}, "one_instance": {"IGN_CPU_INSTANCES": "1"}, "one_thread": {"IGN_THREADS": "1"}}


def measure(options: argparse.Namespace) -> Json:
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(service(SETTINGS | more)) for name, more in VARIANTS.items()}
        loads = itertools.product((1, 8, 64), options.connections)
        instances = [compare_variants(servers, rows, connections, options) for rows, connections in loads]
    least = min(line["share"] for line in instances)
    judged = target("default over the best of the others, least of all loads", least, at_least=0.97)
    return {"targets": [judged], "instances": instances}


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


OPTIONS: Final = {"rounds": (5, 1), "seconds": (2.0, 0.3), "connections": ([1, 8, 32, 256], [8])}

if __name__ == "__main__":
    sys.exit(run_benchmark("processes", METHOD, measure, OPTIONS))
