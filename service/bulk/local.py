"""One run on this machine alone, and what it has in common with one through Ray."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from service.app import running_services
from service.bulk.job import Job
from service.bulk.output import Output
from service.bulk.pipeline import Workshop, together
from service.bulk.progress import Progress
from service.bulk.source import Source
from service.domain.errors import InvalidContent, StartupError, UnknownModel
from service.settings import Settings

Show = Callable[[int, int], Progress]
"""Total pictures, and of those already done → where progress is shown."""

_SHARDS_AT_ONCE: Final = 2  # so that the device does not wait for the end of one


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a run is, and what is left of it.

    Args:
        pictures, shards: of the whole run.
        left: shards that are not there yet.
        done: pictures of those that are.
    """

    pictures: int
    shards: int
    left: tuple[int, ...]
    done: int


def here(job: Job, source: Source | None, output: Output, settings: Settings, show: Show) -> Extent:
    """Do what is left of a run on this machine; returns its extent as it was at the beginning.

    Raises:
        StartupError: it cannot begin; nothing was done.
        IgnError, OSError: it cannot go on; what is done stays.
    """
    return asyncio.run(_here(job, source, output, settings, show))


async def _here(job: Job, source: Source | None, output: Output, settings: Settings, show: Show) -> Extent:
    async with running_services(settings) as services:
        workshop = opened(lambda: Workshop(job, services, output, source))
        extent = begin(job, output, settings, workshop)
        progress = show(extent.pictures, extent.done)
        try:
            await _all(workshop, extent, progress)
        finally:
            progress.close()
    return extent


async def _all(workshop: Workshop, extent: Extent, progress: Progress) -> None:
    left = iter(extent.left)

    async def some() -> None:
        for number in left:
            done = await workshop.shard(number)
            progress.advance(done.pictures, done.bad)

    await together(some() for _ in range(_SHARDS_AT_ONCE))


def begin(job: Job, output: Output, settings: Settings, workshop: Workshop) -> Extent:
    """Note in the output what is made there, or hold the run to what is noted.

    Raises:
        StartupError: it is something else.
    """
    pictures = len(workshop.inputs)
    output.begin(job.identity(workshop.model, settings, pictures, workshop.inputs.digest))
    shards = -(-pictures // job.shard)
    left = tuple(number for number in range(shards) if not output.is_done(number))
    missing = sum(min(job.shard, pictures - number * job.shard) for number in left)
    return Extent(pictures, shards, left, pictures - missing)


def opened(make: Callable[[], Workshop]) -> Workshop:
    """A workshop; what a caller of the endpoint would be told is here a refusal to start.

    Raises:
        StartupError: the job asks for what the service refuses.
    """
    try:
        return make()
    except (UnknownModel, InvalidContent) as exc:
        raise StartupError(exc.detail) from exc
