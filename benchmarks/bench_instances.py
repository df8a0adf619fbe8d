"""The default settings on a CPU beside one instance and beside one thread: rows per request by connections.

    python -m benchmarks.bench_instances --results benchmarks/results/instances.json

The default must not be slower than the best of them, whether HTTP or the model is the limit.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.bench_service import SETTINGS, generate, png, project, run_load
from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    in_turn,
    median_ratio,
    positive,
    report,
    rounded,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import ROOT, service
from service.runtime.onnx_model import OnnxModel

METHOD = (
    "Three services over loopback, measured in turn with closed loops of keep-alive connections: default settings, "
    "IGN_CPU_INSTANCES=1, IGN_THREADS=1; medians over rounds. share: requests/s of the default over those of the best "
    "other, round by round. 1 row is a picture, PNG to PNG; 8 and 64 rows are /generate as npy"
)
FULL = {"rounds": 5, "seconds": 2.0, "connections": [1, 8, 32, 256]}
QUICK = {"rounds": 1, "seconds": 0.3, "connections": [8]}
ROWS = (1, 8, 64)
GOAL = 0.97
VARIANTS = {"default": {}, "one_instance": {"IGN_CPU_INSTANCES": "1"}, "one_thread": {"IGN_THREADS": "1"}}


def main() -> int:
    cli = arguments((__doc__ or "").splitlines()[0])
    cli.add_argument("--models", default=str(ROOT / "models"))
    cli.add_argument("--rounds", type=positive)
    cli.add_argument("--seconds", type=duration, help="of each measurement")
    cli.add_argument("--connections", type=positive, nargs="+")
    options = apply_defaults(cli.parse_args(), full=FULL, quick=QUICK)
    return run_benchmark(measure_all, options)


def measure_all(options: argparse.Namespace) -> Json:
    picture = png(OnnxModel((Path(options.models) / "mnist/3/model.onnx").read_bytes(), threads=1))
    common = SETTINGS | {"IGN_MODEL_DIR": options.models, "IGN_DEFAULT_MODEL": "mnist"}
    lines = []
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(service(common | settings)) for name, settings in VARIANTS.items()}
        for rows in ROWS:
            requests = project(picture) if rows == 1 else generate("application/x-npy", rows)
            for connections in options.connections:
                ways = {
                    name: partial(run_load, server, requests, connections, options.seconds)
                    for name, server in servers.items()
                }
                lines.append(_line(in_turn(ways, options.rounds)) | {"rows": rows, "connections": connections})
    least = min(line["share"] for line in lines)
    targets = [target("default over the best of the others, least of all loads", least, at_least=GOAL)]
    return report("instances", METHOD, options, targets=targets, loads=lines)


def _line(rounds: Mapping[str, list[Json]]) -> Json:
    rates = {name: [each["ok_per_s"] for each in results] for name, results in rounds.items()}
    default, *others = rates.values()
    return {
        "share": rounded(min(median_ratio(default, other) for other in others)),
        "requests_per_s": {name: rounded(statistics.median(each)) for name, each in rates.items()},
        "server_core_ms": {
            name: rounded(statistics.median(each["server_core_ms_per_request"] for each in results))
            for name, results in rounds.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
