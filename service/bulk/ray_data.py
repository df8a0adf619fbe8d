"""A run on Ray Data: one actor with a loaded model per GPU, or per node. Ray assigns shards to actors."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from service.app import running_services
from service.bulk.files import is_url
from service.bulk.job import Job
from service.bulk.local import Progress, ShardPlan, open_pipeline, start
from service.bulk.output import Output
from service.bulk.pipeline import Pipeline, ShardResult, shard_result
from service.bulk.source import Source
from service.domain.errors import IgnError, StartupError
from service.environment import prepare_process
from service.settings import Settings

T = TypeVar("T")

_MAX_BLOCKS: Final = 1000  # Ray schedules and tracks each block, so that many small ones are expensive


def run_on_ray(
    job: Job, source: Source | None, output: Output, settings: Settings, *, actors: int | None = None
) -> ShardPlan:
    """Process the missing shards of a job on a Ray cluster.

    Input, output and models must have the same paths on all nodes.

    Args:
        job: the job.
        source: its open source; None for `generate`.
        output: the locked output folder.
        settings: settings of all actors.
        actors: number of actors; by default one per GPU, or one per node of a cluster without GPUs.

    Returns:
        The plan at the start of the run.

    Raises:
        StartupError: the run cannot start, or Ray is not installed.
        OSError: the run cannot continue; complete shards stay.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise StartupError(f"--ray: Ray is not installed ({exc}); pip install 'ign-service[ray]'") from None
    plan = asyncio.run(_started(job, source, output, settings))
    progress = Progress(plan)
    try:
        if plan.missing:
            ray.init(ignore_reinit_error=True, log_to_driver=False)
            _send(ray, *_absolute(job, output, settings), plan, progress, actors)
    except ray.exceptions.RayError as exc:
        raise OSError(f"Ray failed: {str(exc).strip().splitlines()[-1]}") from exc
    finally:
        progress.close()
    return plan


async def _started(job: Job, source: Source | None, output: Output, settings: Settings) -> ShardPlan:
    # The driver only resolves the model, for which it needs no GPU. Ray gives GPUs to the actors only.
    plain = settings.replace(device="cpu", cuda_graphs=False)
    async with running_services(plain) as services:
        return start(job, output, settings, open_pipeline(job, services, output, source))


def _absolute(job: Job, output: Output, settings: Settings) -> tuple[Job, Output, Settings]:
    """The same with absolute paths, because actors have another working directory."""
    local = job.source and not is_url(job.source)
    source = str(Path(job.source).resolve()) if local else job.source
    settings = settings.replace(model_dir=settings.model_dir.resolve())
    return dataclasses.replace(job, source=source), Output(output.root.resolve()), settings


def _send(
    ray: Any, job: Job, output: Output, settings: Settings, plan: ShardPlan, progress: Progress, actors: int | None
) -> None:
    gpus = 0 if settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    ray.data.DataContext.get_current().enable_progress_bars = False  # `progress` shows one already
    shards = ray.data.from_items(list(plan.missing), override_num_blocks=min(len(plan.missing), _MAX_BLOCKS))
    results = shards.map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(job, output, settings),
        compute=ray.data.ActorPoolStrategy(size=min(actors or gpus or nodes, len(plan.missing))),
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise OSError(row["error"])
        progress.update(ShardResult(images=int(row["images"]), failures=tuple(json.loads(row["failures"]))))


class Actor:
    """A process of Ray with a loaded model.

    Args:
        job, output, settings: those of the driver, with absolute paths.

    Raises:
        StartupError: the model or the source cannot be opened on this node.
    """

    def __init__(self, job: Job, output: Output, settings: Settings) -> None:
        prepare_process()
        # The pipeline needs one event loop for its lifetime, and Ray may call the actor from different threads.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="bulk", daemon=True).start()
        self._running = running_services(settings)
        services = self._await(self._running.__aenter__())
        self._pipeline = Pipeline(job, services, output)
        self._output = output

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Process the shards whose numbers are in column `item`; returns columns of their results."""
        results = [self._process_or_error(int(number)) for number in batch["item"]]
        return {
            "images": [shard.images for shard, _ in results],
            "failures": [json.dumps(shard.failures) for shard, _ in results],
            "error": [error for _, error in results],
        }

    def _process_or_error(self, number: int) -> tuple[ShardResult, str]:
        """A shard, or the error as text: Ray would wrap an exception and lose its type."""
        try:
            return self._process(number), ""
        except IgnError as exc:
            error = exc.detail
        except OSError as exc:
            error = str(exc)
        return ShardResult(images=0, failures=()), error

    def _process(self, number: int) -> ShardResult:
        if self._output.is_complete(number):  # by an actor that died before it returned its result
            return shard_result(self._output.records(number))
        return self._await(self._pipeline.shard(number))

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
