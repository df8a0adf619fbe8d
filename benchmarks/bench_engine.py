"""CPU time of the engine's process: rows from a front end's process, through shared memory, to a no-op model.

python -m benchmarks.bench_engine --results benchmarks/results/engine.json
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
from service.engine.client import RemoteRegistry
from service.engine.engine_host import EngineHost
from service.engine.links import LinkReceiver, control_pair, link

from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    positive,
    report,
    rounded,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import ROOT
from service.artifact.card import ModelCard
from service.artifact.golden import GoldenReport
from service.domain.latents import FloatRows, NoiseSource
from service.domain.tasks import SchedulingParams, StepParams
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import LoadedModel, Repository
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.server.worker_process import tune_gc

METHOD = (
    "Two processes: a front end without HTTP keeps so many rows in flight in requests of so many rows, and an engine "
    "with the service's scheduler and metrics runs them on a model that copies its input. CPU seconds of each process "
    "over its rows; rows per core is rows over the engine's CPU seconds. one_process: the same load and scheduler in "
    "one process, in turn with the other. Medians over rounds"
)
FULL = {"rounds": 5, "seconds": 2.0}
QUICK = {"rounds": 1, "seconds": 0.2}
IN_FLIGHT: Final = 256
ROWS: Final = (1, 4, 16)
GOAL: Final = 100_000
STEP: Final = StepParams(steps=1)
_DEADLINE_S: Final = 30.0


class NoopModel:
    """A model that returns its input."""

    buckets = None

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        """Copy the rows."""
        assert out is not None
        out[...] = rows
        return out

    def reduce_max_batch(self) -> None:
        """Never called: this model does not run out of memory."""


def main() -> int:
    cli = arguments((__doc__ or "").splitlines()[0])
    cli.add_argument("--model", default=str(ROOT / "models/mnist/3/model.onnx"), help="whose card the model takes")
    cli.add_argument("--rounds", type=positive)
    cli.add_argument("--seconds", type=duration, help="of each measurement")
    options = apply_defaults(cli.parse_args(), full=FULL, quick=QUICK)
    return run_benchmark(measure, options)


def measure(options: argparse.Namespace) -> Json:
    card = OnnxModel(Path(options.model).read_bytes(), threads=1).card
    control, theirs = control_pair()
    ours, pipe = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=engine_main, args=(card, theirs, pipe), daemon=True)
    process.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            lines = runner.run(_front(control, ours, card, options))
    finally:
        ours.send(None)
        process.join()
    goals = [
        target(
            f"rows per engine core, {line['rows_per_request']} a request", line["rows_per_engine_core"], at_least=GOAL
        )
        for line in lines
    ]
    return report("engine", METHOD, options, targets=goals, loads=lines)


def engine_main(card: ModelCard, control: socket.socket, pipe: Connection) -> None:
    """The engine: it answers every message of the pipe but None with its CPU seconds."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_engine(card, control, pipe))


def _serve(loaded: LoadedModel) -> ServedModel:
    observer = ModelStatistics(Metrics(), loaded.ref)
    scheduler = Scheduler(*loaded.instances, max_batch_rows=64, queue_rows=10_000, observer=observer)
    return ServedModel(loaded, scheduler, observer)


def _loaded(card: ModelCard) -> LoadedModel:
    return LoadedModel(
        card=card,
        digest="0" * 64,
        instances=(NoopModel(card.shape),),
        noise=NoiseSource(card.shape),
        golden=GoldenReport(difference=0.0, spread=0.0, tolerance=1.0, batches=(1,)),
        device="cpu",
        provider="none",
    )


async def _engine(card: ModelCard, control: socket.socket, pipe: Connection) -> None:
    host = EngineHost()
    registry = ModelRegistry(
        Repository(Path(), lambda _: [], default=card.name),
        serve=_serve,
        on_activated=lambda _: None,
        on_deactivated=lambda _: None,
        wait_for_requests=host.wait_for_requests,
    )
    registry.activate(_loaded(card))
    host.open(registry)
    tune_gc()  # as the service does
    links, asked = LinkReceiver(control, host.add), asyncio.Queue[object]()
    asyncio.get_running_loop().add_reader(pipe.fileno(), lambda: asked.put_nowait(pipe.recv()))
    while await asked.get() is not None:
        pipe.send(time.process_time())
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    links.close()
    await host.close()
    await registry.close()


async def _front(control: socket.socket, pipe: Connection, card: ModelCard, options: argparse.Namespace) -> list[Json]:
    near, far = control_pair()
    registry = RemoteRegistry(card.name, far, on_serving=lambda _: None, wait_for_requests=_nothing)
    link(near, control)
    await registry.open()
    model, here, found = registry.resolve(), _serve(_loaded(card)), []
    here.scheduler.start()
    tune_gc()
    for rows in ROWS:
        costs = []
        for _ in range(options.rounds):
            ended, engine, front = await _load(model, pipe, rows, options.seconds)
            ended_here, _, alone = await _load(here, pipe, rows, options.seconds)
            costs.append((engine / ended / rows, front / ended / rows, alone / ended_here / rows))
        engine, front, alone = (statistics.median(column) for column in zip(*costs, strict=True))
        found.append(
            {
                "rows_per_request": rows,
                "rows_per_engine_core": rounded(1 / engine),
                "engine_us_per_row": rounded(engine * 1e6),
                "front_us_per_row": rounded(front * 1e6),
                "one_process_us_per_row": rounded(alone * 1e6),
                "both_over_one_process": rounded((engine + front) / alone),
            }
        )
    here.scheduler.close()
    await registry.close()
    return found


async def _nothing() -> None:
    """No request of this process lasts."""


async def _load(model: ServedModel, pipe: Connection, rows: int, seconds: float) -> tuple[int, float, float]:
    """Requests ended, CPU seconds of the engine and CPU seconds of this process."""
    x = np.zeros((rows, *model.card.shape), np.float32)
    ended, open_requests, done = 0, 0, asyncio.Event()
    end = time.monotonic() + seconds

    def begin() -> None:
        nonlocal open_requests
        open_requests += 1
        params = SchedulingParams(
            step_params=STEP, deadline=time.monotonic() + _DEADLINE_S, key="benchmark", request_id="0" * 32
        )
        model.scheduler.begin(x, params, deliver, streamed=False)

    def deliver(event: object) -> None:
        nonlocal ended, open_requests
        if isinstance(event, Exception):
            raise event
        ended += 1
        open_requests -= 1
        if time.monotonic() < end:
            begin()
        elif not open_requests:
            done.set()

    pipe.send("start")
    engine, front = pipe.recv(), time.process_time()
    for _ in range(max(1, IN_FLIGHT // rows)):
        begin()
    await done.wait()
    front = time.process_time() - front
    pipe.send("end")
    return ended, pipe.recv() - engine, front


if __name__ == "__main__":
    sys.exit(main())
