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
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop

from benchmarks.bench_runtime import raw_session
from benchmarks.harness.common import MODELS, Json, latency, rounded, run_benchmark, target
from service.domain.latents import FloatRows
from service.domain.tasks import SchedulingParams, StepParams
from service.environment import available_cpus
from service.models.instances import InstanceFactory
from service.models.repository import LoadedModel, Repository
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.scheduling.wake_rule import wake_rule
from service.server.process import tune_gc
from service.settings import Settings

METHOD: Final = (
    "Prepared rows go to service.scheduling in one process with uvloop. single_calls: scheduler and raw onnxruntime "
    "take turns call by call, with nothing else running. queue: single-row requests wait "
    "until the queue holds the stated number, then run on a model that costs nothing; wall time per row of "
    "admission and of the rest, and CPU time of both. submit: a task for each request; begin_many: 32 requests at a "
    "time, without tasks, as HTTP requests come. The garbage collector is set as in the service. "
    "neighbours: latency of one caller with steps=1, alone and beside eight requests with steps=5000 of the same "
    "caller key. The last line is onnxruntime alone: a call with 8 rows, which has just begun when the request "
    "arrives, then one with 1"
)
BATCH_ROWS: Final = 64
LONG, LONG_STEPS = 8, 5000
TOGETHER: Final = 32  # requests that one turn of the event loop hands to the scheduler
DEPTHS: Final = (1, 8, 64, 1000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class InstrumentedModel:
    """A model and its scheduler; ``raw`` runs the same file on the same device with onnxruntime alone."""

    loaded: LoadedModel
    scheduler: Scheduler
    raw: Callable[[FloatRows], FloatRows]

    def rows(self, n: int) -> FloatRows:
        """Latents (n, C, H, W)."""
        return self.loaded.noise.rows(0, 0, n)

    async def run(self, rows: FloatRows, steps: int = 1) -> None:
        """Submit the rows, as an endpoint does between decoding and encoding."""
        deadline = time.monotonic() + 30.0 if steps == 1 else None
        params = SchedulingParams(step_params=StepParams(steps=steps), key="somebody", deadline=deadline)
        await self.scheduler.submit(rows, params)


@contextmanager
def instrumented_model(models: Path, name: str) -> Iterator[InstrumentedModel]:
    """Load and verify a model and start its scheduler, as the service does, without HTTP."""
    cpus = available_cpus()
    factory = InstanceFactory(OnnxModel, Settings(threads=cpus, max_batch_rows=BATCH_ROWS))
    repository = Repository(models, factory, default=name)
    loaded = [one for ref, one in repository.load_all().items() if name in (ref, one.card.name)][-1]
    scheduler = Scheduler(
        *loaded.instances,
        max_batch_rows=BATCH_ROWS,
        queue_rows=4096,
        observer=ModelStatistics(Metrics(), loaded.ref),
        wake_rule=wake_rule(loaded.device, len(loaded.instances), cpus),
    )
    instance = loaded.instances[0]
    assert isinstance(instance, OnnxModel)
    scheduler.start()
    try:
        data = (models / loaded.ref / "model.onnx").read_bytes()
        yield InstrumentedModel(loaded, scheduler, raw_session(data, instance, cpus))
    finally:
        scheduler.close()
        loaded.close()


def measure(options: argparse.Namespace) -> Json:
    with (
        instrumented_model(Path(options.models), options.model) as model,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        about = {"ref": model.loaded.ref, "digest": model.loaded.digest[:12], "provider": model.loaded.provider}
        single = [runner.run(single_calls(model, rows, options)) for rows in (1, BATCH_ROWS)]
        neighbours = runner.run(beside_long_ones(model, options))
    tune_gc()
    queue = queued(options)
    costs = {line["queued_rows"]: line["cpu_us_per_row"] for line in queue if line["by"] == "submit"}
    alone, beside, _ = (line["p99_ms"] for line in neighbours)
    deepest = max(costs)
    targets = [
        target("one row, idle: what the scheduler adds", single[0]["added_ms"], at_most=0.3, unit="ms"),
        target("steps=1 beside eight steps=5000: p99 over p99 alone", beside / alone, at_most=3.0),
        target(f"CPU time by row, {deepest} queued over 64", costs[deepest] / costs[min(64, deepest)], at_most=1.5),
    ]
    return {"model": about, "targets": targets, "single_calls": single, "neighbours": neighbours, "queue": queue}


async def single_calls(model: InstrumentedModel, rows: int, options: argparse.Namespace) -> Json:
    x, raw, scheduled = model.rows(rows), list[float](), list[float]()
    await model.run(x)
    end = time.perf_counter() + options.seconds * options.rounds
    while (start := time.perf_counter()) < end:
        model.raw(x)
        middle = time.perf_counter()
        await model.run(x)
        raw.append((middle - start) * 1e3)
        scheduled.append((time.perf_counter() - middle) * 1e3)
    raw_ms, scheduler_ms = statistics.median(raw), statistics.median(scheduled)
    line = {"raw_p50_ms": raw_ms, "scheduler_p50_ms": scheduler_ms, "added_ms": scheduler_ms - raw_ms}
    return {"rows": rows, "calls": len(raw)} | {name: rounded(value) for name, value in line.items()}


async def beside_long_ones(model: InstrumentedModel, options: argparse.Namespace) -> list[Json]:
    ways: dict[str, list[float]] = {"alone": [], f"beside {LONG} × steps={LONG_STEPS}": []}
    two_calls: list[float] = []
    x, many = model.rows(1), model.rows(LONG)
    for _ in range(options.rounds):
        for number, latencies in enumerate(ways.values()):
            work = [repeat(model, x, 1, latencies), *(repeat(model, x, LONG_STEPS) for _ in range(LONG * number))]
            await for_seconds(work, options.seconds, partial(len, latencies))
        end = time.perf_counter() + options.seconds
        while (start := time.perf_counter()) < end:
            model.raw(many)
            model.raw(x)
            two_calls.append(time.perf_counter() - start)
    ways[f"onnxruntime: {LONG} rows, then 1"] = two_calls
    return [{"steps=1": name} | latency(latencies) for name, latencies in ways.items()]


async def repeat(model: InstrumentedModel, x: FloatRows, steps: int, latencies: list[float] | None = None) -> None:
    while True:
        start = time.perf_counter()
        await model.run(x, steps)
        if latencies is not None:
            latencies.append(time.perf_counter() - start)


async def for_seconds(work: Sequence[Coroutine[Any, Any, None]], seconds: float, enough: Callable[[], object]) -> None:
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
    cases = [(way, depth) for way in WAYS for depth in DEPTHS if depth <= options.depth]
    costs: dict[tuple[str, int], list[tuple[float, ...]]] = {case: [] for case in cases}
    for _, (way, depth) in itertools.product(range(options.rounds), cases):
        for _ in range(max(1, 1000 // depth)):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                costs[way, depth].append(runner.run(fill_and_drain(depth, WAYS[way])))
    lines = []
    for (way, depth), samples in costs.items():
        admit, run, cpu = (rounded(statistics.median(each) / depth * 1e6) for each in zip(*samples, strict=True))
        figures = {"admit_us_per_row": admit, "run_us_per_row": run, "cpu_us_per_row": cpu}
        lines.append({"by": way, "queued_rows": depth, **figures})
    return lines


def submit_each(scheduler: Scheduler, depth: int, x: FloatRows, params: SchedulingParams) -> Awaitable[object]:
    """Submit ``depth`` requests; returns what to wait for."""
    return asyncio.gather(*(scheduler.submit(x, params) for _ in range(depth)))


def begin_together(scheduler: Scheduler, depth: int, x: FloatRows, params: SchedulingParams) -> Awaitable[object]:
    """As `submit_each`, but without tasks and `TOGETHER` at a time, as the requests of HTTP arrive."""
    left, over = depth, asyncio.get_running_loop().create_future()

    def deliver(ended: Sequence[object]) -> None:
        nonlocal left
        left -= len(ended)
        if not left:
            over.set_result(None)

    for begun in range(0, depth, TOGETHER):
        scheduler.begin_many([(x, params)] * min(TOGETHER, depth - begun), deliver)
    return over


Way = Callable[[Scheduler, int, FloatRows, SchedulingParams], Awaitable[object]]
WAYS: Final[dict[str, Way]] = {"submit": submit_each, "begin_many": begin_together}


async def fill_and_drain(depth: int, way: Way) -> tuple[float, float, float]:
    """Seconds to admit ``depth`` single-row requests, seconds until all are answered, and CPU seconds of both."""
    model = NoopModel()
    scheduler = Scheduler(model, max_batch_rows=BATCH_ROWS, queue_rows=2 * depth + 1)
    x, params = np.zeros((1, *model.shape), np.float32), SchedulingParams(step_params=StepParams(steps=1))
    scheduler.start()
    try:
        plug = asyncio.create_task(scheduler.submit(x, params))
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


OPTIONS: Final = {
    "models": MODELS,
    "model": ("mnist",),
    "rounds": (5, 1),
    "seconds": (4.0, 0.3),
    "depth": (100_000, 1000),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("scheduler", METHOD, measure, OPTIONS))
