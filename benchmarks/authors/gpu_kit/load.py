"""Processes of the service that share a device, under load: `python -m
benchmarks.authors.gpu_kit.load`.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.bench_service import ROWS, SETTINGS, generate, project
from benchmarks.harness.common import MODEL, Json, each_round, rounded, run_benchmark, target
from benchmarks.harness.processes import service
from benchmarks.load_generator.load import run_load, summary
from benchmarks.load_generator.messages import NPY

METHOD: Final = (
    "A closed loop for each process: `connections` keep-alive connections over loopback. 1 "
    "row is an image, PNG to PNG; 64 rows are /generate as npy. images_per_s: of all "
    "processes; other figures: medians over the processes"
)
OPTIONS: Final = {
    "device": ("cuda",),
    "processes": (1,),
    "connections": ([1, 8, 64], [8]),
    "seconds": (4.0, 0.3),
}


def measure(options: argparse.Namespace) -> Json:
    with ExitStack() as stack, ThreadPoolExecutor(options.processes) as pool:
        models = Path(stack.enter_context(TemporaryDirectory()))
        shutil.copytree(MODEL.parents[1], models / "mnist")
        settings = SETTINGS | {"IGN_DEVICE": options.device, "IGN_MODEL_DIR": str(models)}
        servers = list(
            pool.map(lambda _: stack.enter_context(service(settings)), range(options.processes))
        )

        def load(rows: int, requests: Sequence[bytes], connections: int) -> Json:
            results = list(
                pool.map(
                    lambda server: run_load(server, requests, connections, options.seconds), servers
                )
            )
            images = rounded(rows * sum(each_round(results, "ok_per_s")))
            return {"rows": rows, "connections": connections, "images_per_s": images} | summary(
                results
            )

        sent = {1: project(), ROWS: generate(NPY)}
        lines = [
            load(rows, sent[rows], connections)
            for rows in sent
            for connections in options.connections
        ]
    failures = sum(line["failures"] for line in lines)
    return {"targets": [target("requests that failed", failures, at_most=0)], "loads": lines}


if __name__ == "__main__":
    sys.exit(run_benchmark("load", METHOD, measure, OPTIONS, judge=True))
