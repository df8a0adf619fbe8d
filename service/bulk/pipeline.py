"""A model at work on shards: read and decode, apply f, encode and write, as the endpoints do, with other ends."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from service.api.app_state import AppState
from service.api.native.responses import in_distribution_fields, rounded
from service.api.native.schemas import GenerateRequest, ProjectOptions
from service.bulk.items import Inputs, Item, inputs_of, keep
from service.bulk.job import Job
from service.bulk.output import Output, Record
from service.bulk.source import Source
from service.domain.blending import blend_result
from service.domain.errors import ModelFailure
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.models.registry import ServedModel

T = TypeVar("T")

_AT_ONCE: Final = 4
"""Batches under way: one on the device, one waiting for it, one being decoded, one being encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A shard that is done: how many pictures it had, and for each that could not be used a line that says why."""

    pictures: int
    bad: tuple[str, ...]


class Workshop:
    """Does shards of one job.

    Args:
        job: what to do.
        services: of this process.
        output: where the pictures go.
        source: where they come from, if it has been opened already.

    Raises:
        UnknownModel, InvalidContent: the job asks for a model that is not there, or for too many steps.
        StartupError: the source cannot be opened.
    """

    def __init__(self, job: Job, services: AppState, output: Output, source: Source | None = None) -> None:
        settings = services.settings
        self._job, self._services, self._output = job, services, output
        self.model: ServedModel = services.registry.resolve(job.options.model)
        self.inputs: Inputs = inputs_of(job, self.model, settings, source)
        self._applied: StepParams = job.step_params(self.model, settings)
        self._strength = job.options.strength if isinstance(job.options, ProjectOptions) else 1.0
        self._form = job.options.format if isinstance(job.options, GenerateRequest | ProjectOptions) else None
        self._batch = min(settings.max_batch_rows, settings.queue_rows, job.shard)
        at_once = _AT_ONCE * len(self.model.loaded.instances)
        self._turns = asyncio.Semaphore(max(1, min(at_once, settings.queue_rows // self._batch)))

    async def shard(self, number: int) -> Done:
        """Make one shard, and put it in its place.

        Raises:
            IgnError: the device or its worker fails, whatever the picture.
            OSError: reading or writing fails altogether.
        """
        start = number * self._job.shard
        stop = min(start + self._job.shard, len(self.inputs))
        folder = self._output.partial(number)
        batches = [(place, min(place + self._batch, stop)) for place in range(start, stop, self._batch)]
        parts = await together(self._part(folder, *batch) for batch in batches)
        records = [item.record for part in parts for item in part]
        for record in records:
            if record["picture"] is not None:
                record["picture"] = f"{self._output.folder(number).name}/{record['picture']}"
        await self._services.codec.run("encode", partial(self._output.finish, number, folder, records))
        return done(records)

    async def _part(self, folder: Path, start: int, stop: int) -> list[Item]:
        """One batch, from end to end."""
        codec = self._services.codec
        async with self._turns:
            items = await codec.run("decode", partial(self.inputs.items, start, stop))
            await self._apply([item for item in items if item.row is not None])
            await codec.run("encode", partial(keep, folder, items, self.model, self._form))
            return items

    async def _apply(self, items: Sequence[Item]) -> None:
        """f^k of all rows at once; where that fails, of each alone, so that only the one at fault has none."""
        if not items:
            return
        try:
            result = await self._run(items)
        except ModelFailure as exc:
            if len(items) == 1:
                items[0].row, items[0].error = None, exc
                return
            for item in items:
                await self._apply([item])
            return
        for place, item in enumerate(items):
            item.row = result.rows[place] if self._form else None
            item.record |= self._measures(result, place)

    async def _run(self, items: Sequence[Item]) -> Result:
        rows = np.stack([item.row for item in items if item.row is not None])
        result = await self.model.scheduler.submit(rows, SchedulingParams(step_params=self._applied))
        return blend_result(rows, result, self._strength)

    def _measures(self, result: Result, place: int) -> Record:
        distance = float(result.distance[place])
        return {
            "steps": int(result.steps[place]),
            "converged": bool(result.converged[place]),
            "distance": rounded(distance),
            "drift": None if result.drift is None else rounded(result.drift[place]),
            **in_distribution_fields(self.model.card, distance),
        }


def done(records: Sequence[Record]) -> Done:
    """What is to be told of a shard with this manifest."""
    return Done(pictures=len(records), bad=tuple(record["detail"] for record in records if record["error"]))


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all at once; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
