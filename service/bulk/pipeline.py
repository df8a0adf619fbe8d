"""Processing of one shard: read and decode, run the model, encode and write, as the endpoints do."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from service.api.app_state import AppState
from service.api.native.responses import in_distribution_fields, round_metric
from service.api.native.schemas import GenerateRequest, ProjectOptions
from service.bulk.items import Inputs, Item, open_inputs, write_images
from service.bulk.job import Job
from service.bulk.output import Output, Record
from service.bulk.source import Source
from service.domain.blending import blend_result
from service.domain.errors import ModelFailure
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.models.registry import ServedModel

T = TypeVar("T")

_BATCHES_IN_FLIGHT: Final = 4
"""Per model instance: one batch on the device, one waiting for it, one being decoded, one being encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """A complete shard.

    Args:
        images: number of its images, including failed ones.
        failures: one message for each failed image.
    """

    images: int
    failures: tuple[str, ...]


class Pipeline:
    """Processes shards of one job.

    Args:
        job: the job.
        services: the running service of this process.
        output: the output folder.
        source: the source of the images, if it is open already.

    Raises:
        UnknownModel, InvalidContent: the job names a model that is not loaded, or too many steps.
        StartupError: the source cannot be opened.
    """

    def __init__(self, job: Job, services: AppState, output: Output, source: Source | None = None) -> None:
        settings = services.settings
        self._job, self._services, self._output = job, services, output
        self.model: ServedModel = services.registry.resolve(job.options.model)
        self.inputs: Inputs = open_inputs(job, self.model, settings, source)
        self._step_params: StepParams = job.step_params(self.model, settings)
        self._strength = job.options.strength if isinstance(job.options, ProjectOptions) else 1.0
        self._format = job.options.format if isinstance(job.options, GenerateRequest | ProjectOptions) else None
        self._batch_rows = min(settings.max_batch_rows, settings.queue_rows, job.shard)
        in_flight = _BATCHES_IN_FLIGHT * len(self.model.loaded.instances)
        # The queue must have room for all batches in flight, or the scheduler would reject some.
        self._batches = asyncio.Semaphore(max(1, min(in_flight, settings.queue_rows // self._batch_rows)))

    async def shard(self, number: int) -> ShardResult:
        """Process and write one shard.

        Raises:
            IgnError: the device or its worker failed, independent of the image.
            OSError: the source cannot be read or the output cannot be written.
        """
        start = number * self._job.shard
        stop = min(start + self._job.shard, len(self.inputs))
        folder = self._output.temp_dir(number)
        ranges = [(first, min(first + self._batch_rows, stop)) for first in range(start, stop, self._batch_rows)]
        batches = await gather_all(self._process(folder, *bounds) for bounds in ranges)
        records = [item.record for batch in batches for item in batch]
        for record in records:
            if record["picture"] is not None:
                record["picture"] = f"{self._output.shard_dir(number).name}/{record['picture']}"
        await self._services.codec.run("encode", partial(self._output.finish, number, folder, records))
        return shard_result(records)

    async def _process(self, folder: Path, start: int, stop: int) -> list[Item]:
        """Decode, run and write the inputs ``start`` … ``stop − 1`` as one batch."""
        codec = self._services.codec
        async with self._batches:
            items = await codec.run("decode", partial(self.inputs.items, start, stop))
            await self._run_isolating([item for item in items if item.row is not None])
            await codec.run("encode", partial(write_images, folder, items, self.model, self._format))
            return items

    async def _run_isolating(self, items: Sequence[Item]) -> None:
        """Run all rows as one request. If the model fails, run each alone, so that only the bad row gets the error."""
        if not items:
            return
        try:
            result = await self._run(items)
        except ModelFailure as exc:
            if len(items) == 1:
                items[0].row, items[0].error = None, exc
                return
            for item in items:
                await self._run_isolating([item])
            return
        for index, item in enumerate(items):
            item.row = result.rows[index] if self._format else None
            item.record |= self._measures(result, index)

    async def _run(self, items: Sequence[Item]) -> Result:
        rows = np.stack([item.row for item in items if item.row is not None])
        result = await self.model.scheduler.run(rows, SchedulingParams(step_params=self._step_params))
        return blend_result(rows, result, self._strength)

    def _measures(self, result: Result, index: int) -> Record:
        distance = float(result.distance[index])
        return {
            "steps": int(result.steps[index]),
            "converged": bool(result.converged[index]),
            "distance": round_metric(distance),
            "drift": None if result.drift is None else round_metric(result.drift[index]),
            **in_distribution_fields(self.model.card, distance),
        }


def shard_result(records: Sequence[Record]) -> ShardResult:
    """The result of a complete shard with this manifest."""
    return ShardResult(images=len(records), failures=tuple(record["detail"] for record in records if record["error"]))


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all concurrently. The first exception cancels the others and is raised without an exception group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
