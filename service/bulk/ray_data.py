"""A run on Ray Data: one model for each GPU, or each node; who does which shard is Ray's to decide."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from service.app import running_services
from service.bulk.job import Job
from service.bulk.local import Extent, Show, begin, opened
from service.bulk.output import Output
from service.bulk.pipeline import Done, Workshop, done
from service.bulk.progress import Progress
from service.bulk.source import Source
from service.domain.errors import IgnError, StartupError
from service.environment import keep_precision, silence_runtime
from service.settings import Settings

T = TypeVar("T")

_MOST_BLOCKS: Final = 1000  # a block is what Ray gives out, and what it keeps account of


def through_ray(
    job: Job, source: Source | None, output: Output, settings: Settings, show: Show, *, actors: int | None = None
) -> Extent:
    """Do what is left of a run; every node must see the input, the output and the models under the same paths.

    Args:
        job: what to do.
        source: where the pictures come from; None for `generate`.
        output: where they go.
        settings: of every process.
        show: where progress is shown.
        actors: models at work; by default one for each GPU, and without any one for each node.

    Raises:
        StartupError: it cannot begin, or Ray is not installed.
        OSError: it cannot go on; what is done stays.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise StartupError(f"--ray: Ray is not installed ({exc}); install this package with the extra `ray`") from None
    extent = asyncio.run(_begun(job, source, output, settings))
    progress = show(extent.pictures, extent.done)
    try:
        if extent.left:
            ray.init(ignore_reinit_error=True, log_to_driver=False)
            _send(ray, *_absolute(job, output, settings), extent, progress, actors)
    except ray.exceptions.RayError as exc:
        raise OSError(f"Ray gave up: {str(exc).strip().splitlines()[-1]}") from exc
    finally:
        progress.close()
    return extent


async def _begun(job: Job, source: Source | None, output: Output, settings: Settings) -> Extent:
    # Which model it is, the driver can say without the GPU that only the actors may have.
    plain = dataclasses.replace(settings, device="cpu", cuda_graphs=False)
    async with running_services(plain) as services:
        return begin(job, output, settings, opened(lambda: Workshop(job, services, output, source)))


def _absolute(job: Job, output: Output, settings: Settings) -> tuple[Job, Output, Settings]:
    """The same, for processes that work in another folder."""
    source = job.source if "://" in job.source or not job.source else str(Path(job.source).resolve())
    settings = dataclasses.replace(settings, model_dir=settings.model_dir.resolve())
    return dataclasses.replace(job, source=source), Output(output.root.resolve()), settings


def _send(
    ray: Any, job: Job, output: Output, settings: Settings, extent: Extent, progress: Progress, actors: int | None
) -> None:
    gpus = 0 if settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    shards = ray.data.from_items(list(extent.left), override_num_blocks=min(len(extent.left), _MOST_BLOCKS))
    made = shards.map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(job, output, settings),
        compute=ray.data.ActorPoolStrategy(size=min(actors or gpus or nodes, len(extent.left))),
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
    )
    for row in made.iter_rows():
        if row["failure"]:
            raise OSError(row["failure"])
        progress.advance(int(row["pictures"]), json.loads(row["bad"]))


class Actor:
    """One loaded model in a process of Ray's.

    Args:
        job, output, settings: as they are on the driver.

    Raises:
        StartupError: it cannot begin here.
    """

    def __init__(self, job: Job, output: Output, settings: Settings) -> None:
        silence_runtime()
        keep_precision()
        # Of its own, as Ray does not say in which of its threads it calls.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="bulk", daemon=True).start()
        self._running = running_services(settings)
        services = self._await(self._running.__aenter__())
        self._workshop = Workshop(job, services, output)
        self._output = output

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Make shards; a batch is their numbers."""
        made = [self._tried(int(number)) for number in batch["item"]]
        return {
            "pictures": [shard.pictures for shard, _ in made],
            "bad": [json.dumps(shard.bad) for shard, _ in made],
            "failure": [failure for _, failure in made],
        }

    def _tried(self, number: int) -> tuple[Done, str]:
        """A shard, or why the run cannot go on: in words, since what is raised reaches nobody through Ray as it was."""
        try:
            return self._made(number), ""
        except IgnError as exc:
            failure = exc.detail
        except OSError as exc:
            failure = str(exc)
        return Done(pictures=0, bad=()), failure

    def _made(self, number: int) -> Done:
        if self._output.is_done(number):  # by an actor that died before it could say so
            return done(self._output.records(number))
        return self._await(self._workshop.shard(number))

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
