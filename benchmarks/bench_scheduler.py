"""The cost of the scheduler on top of raw onnxruntime, and how fairly it shares the model.

    python -m benchmarks.bench_scheduler --results benchmarks/results/scheduler.json

Rows go through `service.scheduling` with the metrics of the service, without HTTP and images. Every figure is compared
with raw onnxruntime on the same model and device, measured in the same run.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    latency,
    median_ratio,
    percentile,
    positive,
    report,
    rounded,
    run_benchmark,
    target,
)
from benchmarks.harness.instrumented_model import (
    BATCH_ROWS,
    InstrumentedModel,
    TimedSession,
    instrumented_model,
    timed_model,
)
from benchmarks.harness.processes import ROOT
from service.api.fast_path import MAX_PER_TURN
from service.domain.latents import FloatRows
from service.domain.tasks import SchedulingParams, StepParams
from service.scheduling.scheduler import Scheduler
from service.server.worker_process import tune_gc

METHOD = (
    "Prepared rows go to service.scheduling in one process with uvloop. single_calls: scheduler and raw onnxruntime "
    "take turns call by call, with nothing else running. mixed: row-steps/s while long and short requests run at "
    "once, over the rows/s of raw onnxruntime at the resulting mean batch size. queue: single-row requests wait "
    "until the queue holds the stated number, then run on a model that costs nothing; wall time per row of "
    "admission and of the rest, and CPU time of both. submit: a task for each request; begin_many: 32 requests at a "
    "time, without tasks, as small HTTP requests come. The garbage collector is set as in the service. "
    "neighbours: latency of one caller with steps=1, alone and beside eight requests with steps=5000 of the same "
    "caller key. The last line is onnxruntime alone: a call with 8 rows, which has just begun when the request "
    "arrives, then one with 1. long_run: wall time minus time within onnxruntime's run, per step, for one row"
)
FULL = {"rounds": 5, "seconds": 4.0, "steps": 40_000, "depth": 100_000}
QUICK = {"rounds": 1, "seconds": 0.3, "steps": 2000, "depth": 1000}
LONG, LONG_STEPS = 8, 5000
FLAT = 1.5
DEPTHS = (1, 8, 64, 1000, 10_000, 100_000)


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    return run_benchmark(measure, options)


def measure(options: argparse.Namespace) -> Json:
    models = Path(options.models)
    with (
        instrumented_model(models, options.model) as model,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        about = {"ref": model.loaded.ref, "digest": model.loaded.digest[:12], "provider": model.loaded.provider}
        single = [runner.run(single_calls(model, rows, options)) for rows in (1, BATCH_ROWS)]
        mixture = runner.run(mixed(model, options))
        neighbours = runner.run(beside_long_ones(model, options))
    with timed_model(models, options.model) as timed, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        long_run = runner.run(long_runs(timed, options))
    tune_gc()
    queue = queued(options)
    judged = targets(single, neighbours, long_run, queue)
    return report(
        "scheduler",
        METHOD,
        options,
        model=about,
        targets=judged,
        single_calls=single,
        mixed=[mixture],
        neighbours=neighbours,
        long_run=[long_run],
        queue=queue,
    )


def targets(single: list[Json], neighbours: list[Json], long_run: Json, queue: list[Json]) -> list[Json]:
    submitted = [line for line in queue if line["by"] == "submit" and line["queued_rows"] >= BATCH_ROWS]
    costs = {line["queued_rows"]: line["cpu_us_per_row"] for line in submitted}
    alone, beside, _ = (line["p99_ms"] for line in neighbours)
    deepest = max(costs)
    flat = [
        target(f"CPU time by row, {deepest} rows queued over {depth}", costs[deepest] / costs[depth], at_most=FLAT)
        for depth in (BATCH_ROWS, 1000)
        if depth in costs
    ]
    return [
        target("one row, idle: what the scheduler adds", single[0]["added_ms"], at_most=0.3, unit="ms"),
        target("steps=1 beside eight steps=5000: p99 over p99 alone", beside / alone, at_most=3.0),
        target("long run, batch 1: a step outside onnxruntime", long_run["outside_us_per_step"], at_most=20, unit="µs"),
        *flat,
    ]


async def single_calls(model: InstrumentedModel, rows: int, options: argparse.Namespace) -> Json:
    x = model.rows(rows)
    raw, scheduled = [], []
    for _ in range(10):
        model.raw(x)
        await model.run(x)
    end = time.perf_counter() + options.seconds * options.rounds
    while time.perf_counter() < end:
        start = time.perf_counter()
        model.raw(x)
        middle = time.perf_counter()
        await model.run(x)
        raw.append(middle - start)
        scheduled.append(time.perf_counter() - middle)
    raw_ms, scheduler_ms = statistics.median(raw) * 1e3, statistics.median(scheduled) * 1e3
    return {
        "rows": rows,
        "calls": len(raw),
        "raw_p50_ms": rounded(raw_ms),
        "scheduler_p50_ms": rounded(scheduler_ms),
        "added_ms": rounded(scheduler_ms - raw_ms),
        "share_of_raw": rounded(raw_ms / scheduler_ms),
        "raw_p99_ms": rounded(percentile(sorted(raw), 99) * 1e3),
        "scheduler_p99_ms": rounded(percentile(sorted(scheduled), 99) * 1e3),
    }


async def mixed(model: InstrumentedModel, options: argparse.Namespace) -> Json:
    """Four tasks that always run 8 rows of 500 steps, beside 32 that always run one row of one step."""
    shares, sizes, shorts = [], [], 0
    for _ in range(options.rounds):
        latencies: list[float] = []
        before = model.observer.rows, model.observer.batches
        start = time.perf_counter()
        work = [repeat(model, model.rows(8), 500) for _ in range(4)]
        work += [repeat(model, model.rows(1), 1, latencies) for _ in range(32)]
        await for_seconds(work, options.seconds, partial(len, latencies))
        seconds = time.perf_counter() - start
        row_steps = model.observer.rows - before[0]
        size = max(1, round(row_steps / (model.observer.batches - before[1])))
        shares.append(row_steps / seconds / raw_rate(model, size, options.seconds))
        sizes.append(size)
        shorts += len(latencies)
    return {
        "mean_batch_rows": round(statistics.fmean(sizes), 1),
        "short_requests": shorts,
        "share_of_raw": rounded(statistics.median(shares)),
        "share_least": rounded(min(shares)),
        "share_most": rounded(max(shares)),
    }


async def beside_long_ones(model: InstrumentedModel, options: argparse.Namespace) -> list[Json]:
    ways: dict[str, list[float]] = {"alone": [], f"beside {LONG} × steps={LONG_STEPS}": []}
    two_calls: list[float] = []
    x, calls = model.rows(1), (model.rows(LONG), model.rows(1))
    for _ in range(options.rounds):
        for number, latencies in enumerate(ways.values()):
            work = [repeat(model, x, 1, latencies)]
            work += [repeat(model, x, LONG_STEPS) for _ in range(LONG * number)]
            await for_seconds(work, options.seconds, partial(len, latencies))
        two_calls += raw_calls(model, calls, options.seconds)
    ways[f"onnxruntime: {LONG} rows, then 1"] = two_calls
    return [{"steps=1": name} | latency(latencies) for name, latencies in ways.items()]


def raw_calls(model: InstrumentedModel, calls: Sequence[FloatRows], seconds: float) -> list[float]:
    """How long these calls of onnxruntime take together, measured again and again for ``seconds``."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        for rows in calls:
            model.raw(rows)
        times.append(time.perf_counter() - start)
    return times


async def repeat(model: InstrumentedModel, x: FloatRows, steps: int, latencies: list[float] | None = None) -> None:
    while True:
        start = time.perf_counter()
        await model.run(x, steps, deadline_s=30.0 if steps == 1 else None)
        if latencies is not None:
            latencies.append(time.perf_counter() - start)


async def for_seconds(
    work: Sequence[Coroutine[Any, Any, None]], seconds: float, enough: Callable[[], object] = lambda: True
) -> None:
    """Run all coroutines for ``seconds``, and again for as long until ``enough`` is true."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        while not (done := (await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION))[0]):
            if enough():
                break
        for task in done:
            task.result()  # raises its exception
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def raw_rate(model: InstrumentedModel, rows: int, seconds: float) -> float:
    x = model.rows(rows)
    model.raw(x)
    calls, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        model.raw(x)
        calls += 1
    return calls * rows / (now - start)


async def long_runs(model: InstrumentedModel, options: argparse.Namespace) -> Json:
    x, outside, inside = model.rows(1), [], []
    await model.run(x, 100)
    for _ in range(options.rounds):
        within, start = TimedSession.seconds, time.perf_counter()
        await model.run(x, options.steps, deadline_s=None)
        seconds, within = time.perf_counter() - start, TimedSession.seconds - within
        outside.append((seconds - within) / options.steps * 1e6)
        inside.append(within / options.steps * 1e6)
    return {
        "steps": options.steps * options.rounds,
        "outside_us_per_step": rounded(statistics.median(outside)),
        "outside_us_least": rounded(min(outside)),
        "outside_us_most": rounded(max(outside)),
        "onnxruntime_us_per_step": rounded(statistics.median(inside)),
        "share_of_onnxruntime": rounded(median_ratio(inside, [a + b for a, b in zip(inside, outside, strict=True)])),
    }


class NoopModel:
    """A model that returns its input at once, after ``gate`` is set."""

    shape = (1, 4, 4)
    buckets = None

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        self.entered.set()
        self.gate.wait()
        assert out is not None
        out[...] = rows
        return out

    def reduce_max_batch(self) -> None:
        raise AssertionError("this model does not run out of memory")


def queued(options: argparse.Namespace) -> list[Json]:
    """Cost per row by queue depth; small depths are measured more often."""
    depths = [depth for depth in DEPTHS if depth <= options.depth]
    cases = list(itertools.product(WAYS, depths))
    costs: dict[tuple[str, int], list[tuple[float, ...]]] = {case: [] for case in cases}
    for _, (way, depth) in itertools.product(range(options.rounds), cases):
        for _ in range(max(1, 1000 // depth)):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                costs[way, depth].append(runner.run(fill_and_drain(depth, WAYS[way])))
    names = ("admit_us_per_row", "run_us_per_row", "cpu_us_per_row")
    return [
        {"by": way, "queued_rows": depth}
        | {
            name: rounded(statistics.median(values) / depth * 1e6)
            for name, values in zip(names, zip(*costs[way, depth], strict=True), strict=True)
        }
        for way, depth in cases
    ]


def submit_each(scheduler: Scheduler, depth: int, x: FloatRows, params: SchedulingParams) -> Awaitable[object]:
    """Submit ``depth`` requests; returns what to wait for."""
    return asyncio.gather(*(scheduler.run(x, params) for _ in range(depth)))


def begin_together(scheduler: Scheduler, depth: int, x: FloatRows, params: SchedulingParams) -> Awaitable[object]:
    """As `submit_each`, but as `service.api.fast_path` does it."""
    left, over = depth, asyncio.get_running_loop().create_future()

    def deliver(ended: Sequence[object]) -> None:
        nonlocal left
        left -= len(ended)
        if not left:
            over.set_result(None)

    for begun in range(0, depth, MAX_PER_TURN):
        scheduler.begin_many([(x, params)] * min(MAX_PER_TURN, depth - begun), deliver)
    return over


WAYS = {"submit": submit_each, "begin_many": begin_together}


async def fill_and_drain(
    depth: int, way: Callable[[Scheduler, int, FloatRows, SchedulingParams], Awaitable[object]]
) -> tuple[float, float, float]:
    """Seconds to admit ``depth`` single-row requests, seconds until all are answered, and CPU seconds of both."""
    model = NoopModel()
    scheduler = Scheduler(model, max_batch_rows=BATCH_ROWS, queue_rows=2 * depth + 1)
    x, params = np.zeros((1, *model.shape), np.float32), SchedulingParams(step_params=StepParams(steps=1))
    scheduler.start()
    try:
        plug = asyncio.create_task(scheduler.run(x, params))
        await asyncio.to_thread(model.entered.wait)
        start, cpu = time.perf_counter(), time.process_time()
        calls = way(scheduler, depth, x, params)
        await asyncio.sleep(0)  # all tasks before this one have been admitted when it resumes
        middle = time.perf_counter()
        model.gate.set()
        await asyncio.gather(plug, calls)
        return middle - start, time.perf_counter() - middle, time.process_time() - cpu
    finally:
        model.gate.set()
        scheduler.close()


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure the scheduler against raw onnxruntime.")
    cli.add_argument("--models", default=str(ROOT / "models"), help="model directory (default: the shipped one)")
    cli.add_argument("--model", default="mnist", help="name or name/version (default mnist)")
    cli.add_argument("--rounds", type=positive, help="rounds (default 5; quick 1)")
    cli.add_argument("--seconds", type=duration, help="seconds per measurement and round (default 4; quick 0.3)")
    cli.add_argument("--steps", type=positive, help="steps of a long run per round (default 40000; quick 2000)")
    cli.add_argument("--depth", type=positive, help="most rows queued (default 100000; quick 1000)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
