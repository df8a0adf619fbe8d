"""A model on the GPU of this machine, and the service with it under load: `make gpu`.

python -m benchmarks.bench_gpu --results benchmarks/results/gpu.json
"""

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import bench_runtime
from benchmarks.bench_service import ROWS, SETTINGS, generate, project
from benchmarks.harness.common import MODEL, Json, each_round, rounded, run_benchmark, target
from benchmarks.harness.processes import service
from benchmarks.load_generator.load import run_load, summary
from benchmarks.load_generator.messages import NPY

METHOD: Final = (
    f"sizes: {bench_runtime.METHOD}. loads: a closed loop for each of `processes` of the service "
    "that share the device: `connections` keep-alive connections over loopback, `load_seconds` "
    "long. 1 row is an image, PNG to PNG; 64 rows are /generate as npy. images_per_s: of all "
    "processes; other figures: medians over the processes"
)


def measure(options: argparse.Namespace) -> Json:
    result = bench_runtime.measure(options)
    loads = [line for processes in options.processes for line in under_load(processes, options)]
    failures = sum(line["failures"] for line in loads)
    result["targets"].append(target("requests that failed", failures, at_most=0))
    return result | {"loads": loads}


def under_load(processes: int, options: argparse.Namespace) -> list[Json]:
    """All loads of so many processes of the service."""
    lines = list[Json]()
    with ExitStack() as stack, ThreadPoolExecutor(processes) as pool:
        models = Path(stack.enter_context(TemporaryDirectory()))
        shutil.copytree(MODEL.parents[1], models / "mnist")
        settings = SETTINGS | {"IGN_DEVICE": options.device, "IGN_MODEL_DIR": str(models)}
        servers = [stack.enter_context(service(settings)) for _ in range(processes)]
        sent = {1: project(), ROWS: generate(NPY)}
        for rows, n in product(sent, options.connections):
            load = partial(
                run_load, requests=sent[rows], connections=n, seconds=options.load_seconds
            )
            results = list(pool.map(load, servers))
            images = rounded(rows * sum(each_round(results, "ok_per_s")))
            line = {"processes": processes, "rows": rows, "connections": n, "images_per_s": images}
            lines.append(line | summary(results))
    return lines


OPTIONS: Final = bench_runtime.OPTIONS | {
    "device": ("cuda",),
    "processes": ([1, 4, 8], [1]),
    "connections": ([1, 8, 64], [8]),
    "load_seconds": (4.0, 0.3),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("gpu", METHOD, measure, OPTIONS))
