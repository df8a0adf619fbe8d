"""The cost of the scheduler on top of raw onnxruntime, and how fairly it shares the model.

    python -m benchmarks.bench_scheduler --results benchmarks/results/scheduler.json

Rows go through `service.scheduling` with the metrics of the service, without HTTP and images. Every
figure is compared with raw onnxruntime on the same model and device, measured in the same run.
"""

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Sequence
from contextlib import closing
from functools import partial
from typing import Final

import numpy as np
import uvloop

from benchmarks.bench_service import raw_session, repeated
from benchmarks.harness.common import MODEL, REF, Json, latency, run_benchmark, target
from service.domain.latents import FloatRows, NoiseSource
from service.domain.tasks import SchedulingParams, StepParams
from service.environment import available_cpus
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.server.process import tune_gc

METHOD: Final = (
    "Prepared rows go to service.scheduling in one process with uvloop. queue: single-row "
    "requests, 32 at a time as HTTP requests come, wait until the queue holds the stated "
    "number, then run on a model that costs nothing; wall time per row of admission and of "
    "the rest, and CPU time of both. The garbage collector is set as in the service. "
    "neighbours: latency of one caller with steps=1, alone and beside eight requests with "
    "steps=5000 of the same caller key; and of a call of onnxruntime alone"
)
BATCH_ROWS: Final = 64
LONG = 8
LONG_STEPS = 5000
TOGETHER: Final = 32  # requests that one turn of the event loop hands to the scheduler
DEPTHS: Final = (1, 8, 64, 1000, 10_000, 100_000)


def measure(options: argparse.Namespace) -> Json:
    data = MODEL.read_bytes()
    model = OnnxModel(data, threads=available_cpus(), max_batch_rows=BATCH_ROWS)
    about = {"ref": REF, "digest": model.digest[:12], "provider": model.provider}
    neighbours = uvloop.run(beside_long_ones(model, data, options))
    tune_gc()
    queue = queued(options)
    costs = {line["queued_rows"]: line["cpu_us_per_row"] for line in queue}
    raw, alone, beside = neighbours
    deepest = max(costs)
    targets = [
        target(
            "one row, idle: what the scheduler adds",
            alone["p50_ms"] - raw["p50_ms"],
            at_most=0.3,
            unit="ms",
        ),
        target(
            "steps=1 beside eight steps=5000: p99 over p99 alone",
            beside["p99_ms"] / alone["p99_ms"],
            at_most=3.0,
        ),
        target(
            f"CPU time by row, {deepest} queued over 64",
            costs[deepest] / costs[min(64, deepest)],
            at_most=1.5,
        ),
    ]
    return {"model": about, "targets": targets, "neighbours": neighbours, "queue": queue}


async def beside_long_ones(
    model: OnnxModel, data: bytes, options: argparse.Namespace
) -> list[Json]:
    """Latency of a row: of onnxruntime alone, and in the scheduler, as the service starts it, by
    the number of long ones.
    """
    x = NoiseSource(model.card.shape).rows(0, 0, 1)
    raw = repeated(partial(raw_session(data, model), x), options.rounds * options.seconds)["ok"]
    scheduler = Scheduler(
        model,
        max_batch_rows=BATCH_ROWS,
        queue_rows=4096,
        observe=ModelStatistics(Metrics(), REF).take,
    )

    def run(steps: int, deadline: float | None) -> Awaitable[object]:
        params = SchedulingParams(
            step_params=StepParams(steps=steps), key="somebody", deadline=deadline
        )
        return scheduler.run(x, params)

    async def repeat() -> None:
        while True:
            await run(LONG_STEPS, None)

    found: dict[int, list[float]] = {0: [], LONG: []}
    with closing(scheduler):
        for number, latencies in list(found.items()) * options.rounds:
            work = [asyncio.create_task(repeat()) for _ in range(number)]
            end = time.perf_counter() + options.seconds
            while (start := time.perf_counter()) < end or not latencies:
                await run(1, time.monotonic() + 30.0)
                latencies.append(time.perf_counter() - start)
            for task in work:
                if not task.cancel():
                    task.result()  # it raises
    return [
        {"steps=1": "onnxruntime", **raw},
        {"steps=1": "alone", **latency(found[0])},
        {"steps=1": f"beside {LONG} × {LONG_STEPS}", **latency(found[LONG])},
    ]


class NoopModel:
    """A model that returns its input at once, after ``gate`` is set."""

    shape = (1, 4, 4)
    buckets = None

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()

    def run(self, rows: FloatRows) -> FloatRows:
        self.entered.set()
        self.gate.wait()
        return rows.copy()

    def reduce_max_batch(self) -> None:
        raise AssertionError("this model does not run out of memory")


def queued(options: argparse.Namespace) -> list[Json]:
    """Cost per row by queue depth; small depths are measured more often."""
    lines = []
    for depth in (depth for depth in DEPTHS if depth <= options.depth):
        times = options.rounds * max(1, 1000 // depth)
        samples = [uvloop.run(fill_and_drain(depth)) for _ in range(times)]
        admit, run, cpu = (np.median(samples, axis=0) / depth * 1e6).tolist()
        figures = {"admit_us_per_row": admit, "run_us_per_row": run, "cpu_us_per_row": cpu}
        lines.append({"queued_rows": depth, **figures})
    return lines


async def fill_and_drain(depth: int) -> tuple[float, float, float]:
    """Seconds to admit ``depth`` single-row requests, seconds until all are answered, and CPU
    seconds of both. They are submitted `TOGETHER` at a time, as those of HTTP arrive.
    """
    left = depth
    over = asyncio.Event()

    def deliver(ended: Sequence[object]) -> None:
        nonlocal left
        left -= len(ended)
        if not left:
            over.set()

    model = NoopModel()
    scheduler = Scheduler(model, max_batch_rows=BATCH_ROWS, queue_rows=2 * depth + 1)
    x = np.zeros((1, *model.shape), np.float32)
    params = SchedulingParams(step_params=StepParams(steps=1))
    try:
        plug = scheduler.run(x, params)
        await asyncio.to_thread(model.entered.wait)
        start = time.perf_counter()
        cpu = time.process_time()
        for begun in range(0, depth, TOGETHER):
            scheduler.submit([(x, params)] * min(TOGETHER, depth - begun), deliver)
        middle = time.perf_counter()
        model.gate.set()
        await asyncio.gather(plug, over.wait())
        return middle - start, time.perf_counter() - middle, time.process_time() - cpu
    finally:
        model.gate.set()
        scheduler.close()


OPTIONS: Final = {
    "rounds": 5,
    "seconds": 4.0,
    "depth": 100_000,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("scheduler", METHOD, measure, OPTIONS))
