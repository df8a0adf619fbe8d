"""A run of the missing shards: in this process, or on Ray Data with one actor per GPU, or some
cores.
"""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from service.app import running_services
from service.bulk.output import Output, Record, progress
from service.bulk.pipeline import LoopThread
from service.bulk.places import gather_all, is_url
from service.bulk.shards import Job, ShardPlan, Shards
from service.bulk.sources import Files, open_source
from service.domain.errors import IgnError, StartupError
from service.environment import available_cpus, prepare_process
from service.settings import Settings

_LOG = logging.getLogger(__name__)
# while the last batches of one shard finish, the next one keeps the device busy
_SHARDS_AT_ONCE: Final = 2
_MAX_REPORTED: Final = 20  # failed images in the log; the manifest lists all
_CORES: Final = 4  # of an actor without a GPU, unless `IGN_THREADS` says how many
# Ray schedules and tracks each block, so that many small ones are expensive
_MAX_BLOCKS: Final = 1000


class Progress:
    """Reports a run: a bar on a terminal, else one log line per shard."""

    def __init__(self, plan: ShardPlan) -> None:
        # disable=None: no bar unless stderr is a terminal
        self.bar = tqdm(
            total=plan.images,
            initial=plan.completed,
            unit=" images",
            dynamic_ncols=True,
            disable=None,
        )
        self._plan, self._done, self._failed, self._began = (
            plan,
            plan.completed,
            0,
            time.monotonic(),
        )
        if plan.completed:
            _LOG.info("continuing: %d of %d images are complete", plan.completed, plan.images)

    def update(self, records: Sequence[Record]) -> None:
        """Report a finished shard and its first failed images."""
        for record in (one for one in records if one["error"]):
            self._failed += 1
            if self._failed <= _MAX_REPORTED:
                _LOG.warning("%s", record["detail"])
            elif self._failed == _MAX_REPORTED + 1:
                _LOG.warning("more images failed; the manifest lists all of them")
        self._done += len(records)
        self.bar.update(len(records))
        if self.bar.disable:
            total = self._plan.images
            seconds = max(time.monotonic() - self._began, 1e-9)
            speed = progress((self._done - self._plan.completed) / seconds, total - self._done)
            _LOG.info("%d/%d images, %d failed, %s", self._done, total, self._failed, speed)


def open_input(job: Job, output: Output, settings: Settings, *, is_part: bool) -> Files | None:
    """The source of a job that has one, of which this process does a part or all."""
    if not job.source:
        return None
    listing = output.listing(job.source, is_part=is_part)
    return open_source(listing, column=job.column, limit=settings.max_body_bytes)


def run_local(job: Job, source: Files | None, output: Output, settings: Settings) -> ShardPlan:
    """Process the missing shards of a job in this process, to a locked output; returns the plan at
    the start.

    Raises StartupError if the run cannot start, and nothing was written. IgnError and OSError mean
    that it cannot continue; complete shards stay.
    """

    async def run() -> ShardPlan:
        async with running_services(settings, job.options.model or "") as services:
            shards = Shards(job, services, output, source)
            plan = shards.start()
            missing = iter(plan.missing)
            progress = Progress(plan)

            async def take_turns() -> None:
                for number in missing:  # all tasks take shards from the same iterator
                    progress.update(await shards.shard(number))

            with progress.bar:
                await gather_all(take_turns() for _ in range(_SHARDS_AT_ONCE))
        return plan

    return asyncio.run(run())


def run_on_ray(
    job: Job, source: Files | None, output: Output, settings: Settings, *, actors: int | None = None
) -> ShardPlan:
    """As `run_local`, on a Ray cluster. Input, output and models must have the same paths on all
    nodes.

    By default there is one of the ``actors`` per GPU, or per few cores without GPUs, and more as
    the cluster grows.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise StartupError(
            f"--ray: Ray is not installed ({exc}); pip install 'ign-service[ray]'"
        ) from None

    async def plan_run() -> ShardPlan:
        # The driver only resolves the model, for which it needs no GPU. Ray gives GPUs to the
        # actors only.
        on_cpu = settings.replace(device="cpu")
        async with running_services(on_cpu, job.options.model or "") as services:
            return Shards(job, services, output, source).start()

    plan = asyncio.run(plan_run())
    progress = Progress(plan)
    try:
        with progress.bar:
            if plan.missing:
                ray.init(ignore_reinit_error=True, log_to_driver=False)
                _run_actors(ray, job, output, settings, plan, progress, actors)
    except ray.exceptions.RayError as exc:
        raise OSError(f"Ray failed: {str(exc).strip().splitlines()[-1]}") from exc
    return plan


def _run_actors(
    ray: Any,
    job: Job,
    output: Output,
    settings: Settings,
    plan: ShardPlan,
    progress: Progress,
    actors: int | None,
) -> None:
    if job.source and not is_url(job.source):  # actors have another working directory
        job = dataclasses.replace(job, source=str(Path(job.source).resolve()))
    if not settings.model_url:
        settings = settings.replace(model_dir=settings.model_dir.resolve())
    resources = ray.cluster_resources()
    cores = settings.threads or min(_CORES, available_cpus())
    gpus = 0 if settings.device == "cpu" else int(resources.get("GPU", 0))
    now = gpus or int(resources.get("CPU", 1)) // cores or 1
    least, most = (
        min(count, len(plan.missing)) for count in (actors or now, actors or len(plan.missing))
    )
    ray.data.DataContext.get_current().enable_progress_bars = False  # `progress` shows one already
    shards = ray.data.from_items(
        list(plan.missing), override_num_blocks=min(len(plan.missing), _MAX_BLOCKS)
    )
    results = shards.map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(job, output, settings if gpus else settings.replace(threads=cores)),
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=0 if gpus else cores,
        num_gpus=1 if gpus else 0,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise OSError(row["error"])
        progress.update(json.loads(row["records"]))


class Actor:
    """A process of Ray with a loaded model; its arguments are the driver's, with absolute paths."""

    def __init__(self, job: Job, output: Output, settings: Settings) -> None:
        prepare_process()
        self._loop = LoopThread()  # Ray may call the actor from different threads
        self._running = running_services(settings, job.options.model or "")
        services = self._loop.run(self._running.__aenter__())
        self._shards = Shards(
            job, services, output, open_input(job, output, settings, is_part=True)
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Process the shard in column `item`; returns its records, or the error as text: Ray would
        lose its type.
        """
        number = int(batch["item"][0])
        records = list[Record]()
        error = ""
        try:
            records = self._loop.run(self._shards.shard(number))
        except (IgnError, OSError) as exc:
            error = exc.detail if isinstance(exc, IgnError) else str(exc)
        return {"records": [json.dumps(records)], "error": [error]}
