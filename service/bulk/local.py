"""A run in this process, and the plan and progress that it shares with a run on Ray."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from tqdm import tqdm

from service.api.app_state import AppState
from service.app import running_services
from service.bulk.job import Job
from service.bulk.output import Output
from service.bulk.pipeline import Pipeline, ShardResult, gather_all
from service.bulk.source import Source
from service.domain.errors import InvalidContent, StartupError, UnknownModel
from service.settings import Settings

_LOG = logging.getLogger(__name__)
_SHARDS_AT_ONCE: Final = 2  # while the last batches of one shard finish, the next one keeps the device busy
_MAX_REPORTED: Final = 20  # failed images in the log; the manifest lists all


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The size of a run, and what is missing.

    Args:
        images, shards: of the whole run.
        missing: numbers of the shards that are not complete.
        completed: images in complete shards.
    """

    images: int
    shards: int
    missing: tuple[int, ...]
    completed: int


class Progress:
    """Reports a run: a bar on a terminal, else one log line per shard.

    Args:
        plan: the run.
    """

    def __init__(self, plan: ShardPlan) -> None:
        # disable=None: no bar unless stderr is a terminal
        self._bar = tqdm(total=plan.images, initial=plan.completed, unit=" images", dynamic_ncols=True, disable=None)
        self._total, self._done, self._failed = plan.images, plan.completed, 0
        if plan.completed:
            _LOG.info("continuing: %d of %d images are complete", plan.completed, plan.images)

    def update(self, shard: ShardResult) -> None:
        """Report a finished shard and its first failed images."""
        for detail in shard.failures:
            self._failed += 1
            if self._failed <= _MAX_REPORTED:
                _LOG.warning("%s", detail)
            elif self._failed == _MAX_REPORTED + 1:
                _LOG.warning("more images failed; the manifest lists all of them")
        self._done += shard.images
        self._bar.update(shard.images)
        if self._bar.disable:
            _LOG.info("%d/%d images, %d failed", self._done, self._total, self._failed)

    def close(self) -> None:
        """Finish the bar."""
        self._bar.close()


def run_local(job: Job, source: Source | None, output: Output, settings: Settings) -> ShardPlan:
    """Process the missing shards of a job in this process.

    Args:
        job: the job.
        source: its open source; None for `generate`.
        output: the locked output folder.
        settings: settings of the service.

    Returns:
        The plan at the start of the run.

    Raises:
        StartupError: the run cannot start; nothing was written.
        IgnError, OSError: the run cannot continue; complete shards stay.
    """
    return asyncio.run(_run(job, source, output, settings))


async def _run(job: Job, source: Source | None, output: Output, settings: Settings) -> ShardPlan:
    async with running_services(settings) as services:
        pipeline = open_pipeline(job, services, output, source)
        plan = start(job, output, settings, pipeline)
        progress = Progress(plan)
        try:
            await _process(pipeline, plan, progress)
        finally:
            progress.close()
    return plan


async def _process(pipeline: Pipeline, plan: ShardPlan, progress: Progress) -> None:
    missing = iter(plan.missing)

    async def take_turns() -> None:
        for number in missing:  # both tasks take shards from the same iterator
            progress.update(await pipeline.shard(number))

    await gather_all(take_turns() for _ in range(_SHARDS_AT_ONCE))


def start(job: Job, output: Output, settings: Settings, pipeline: Pipeline) -> ShardPlan:
    """Record the job in the output folder, or check that it continues the recorded one; returns what is missing.

    Raises:
        StartupError: the folder holds the output of another job.
    """
    images = len(pipeline.inputs)
    output.start(job.fingerprint(pipeline.model, settings, images, pipeline.inputs.digest))
    shards = -(-images // job.shard)
    missing = tuple(number for number in range(shards) if not output.is_complete(number))
    left = sum(min(job.shard, images - number * job.shard) for number in missing)
    return ShardPlan(images, shards, missing, images - left)


def open_pipeline(job: Job, services: AppState, output: Output, source: Source | None) -> Pipeline:
    """Create the pipeline of a job. Errors that an endpoint would return to its caller become startup errors.

    Raises:
        StartupError: the job asks for something that the service refuses.
    """
    try:
        return Pipeline(job, services, output, source)
    except (UnknownModel, InvalidContent) as exc:
        raise StartupError(exc.detail) from exc
