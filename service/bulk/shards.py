"""The job of a run, and one shard of it: read inputs, run the pipeline, write images and records.

Images are read in their order, some of them ahead of those that run.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from service.api.app_state import AppState
from service.api.native.schemas import Format, GenerateRequest, ImageOptions, ProjectOptions
from service.bulk.output import COLUMNS, Fingerprint, Made, Output, Pack, Record, packed
from service.bulk.pipeline import SCHEMAS, Item, Options, Pipeline
from service.bulk.sources import Files

_LAYOUT: Final = 2  # of the output folder; a run does not continue a folder of another layout
_SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy"}
_MAX_STEM: Final = 80
_AT_ONCE: Final = 64  # images that are read by one call
_READ_AHEAD: Final = 8  # such calls whose images are not yet written


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one run does."""

    options: Options
    source: str = ""  # path or URL of the images; empty for `generate`
    column: str = "image"  # of a Parquet table, with the images
    shard: int = 1024  # images in each, ≥ 1
    pack: Pack = "files"
    part: tuple[int, int] = (1, 1)  # shards of this worker: k, n are every n-th, from the k-th


class ShardPlan(NamedTuple):
    """The number of images of a worker and of all shards, and what of its own is done."""

    images: int
    shards: int
    missing: tuple[int, ...]  # numbers of the shards that are not complete
    completed: int  # images in complete shards


class Shards:
    """Processes shards of one job, whose ``source`` may be open already; raises StartupError as
    `Pipeline`.
    """

    def __init__(self, job: Job, services: AppState, output: Output, source: Files | None) -> None:
        self._job = job
        self._services = services
        self._output = output
        self._source = source
        self._pipeline = Pipeline(job.options, services)
        options = job.options
        self.images = (
            options.n if isinstance(options, GenerateRequest) else (source.images if source else 0)
        )
        self._format = (
            options.format if isinstance(options, GenerateRequest | ProjectOptions) else None
        )
        self._ahead = asyncio.Semaphore(_READ_AHEAD)

    def start(self) -> ShardPlan:
        """Record the job in the output folder, or check that it continues the recorded one; returns
        what is missing.
        """
        self._output.start(self._fingerprint(), self._source.listing if self._source else None)
        size = self._job.shard
        (part, parts) = self._job.part
        count = -(-self.images // size)
        mine = range(part - 1, count, parts)
        complete = self._output.complete()
        missing = tuple(number for number in mine if number not in complete)
        images, left = (
            sum(min(size, self.images - n * size) for n in some) for some in (mine, missing)
        )
        return ShardPlan(images, count, missing, images - left)

    def _fingerprint(self) -> Fingerprint:
        """Everything that determines the bytes of the output, as JSON values."""
        job = self._job
        model = self._pipeline.model
        unused = {"model", "record", *ImageOptions.model_fields} - {"format"}
        options = job.options.model_dump(mode="json", exclude=unused)
        if self._format:
            options["steps"] = self._pipeline.steps.steps
        return {
            "layout": _LAYOUT,
            "task": next(task for task, schema in SCHEMAS.items() if type(job.options) is schema),
            "model": model.ref,
            "digest": f"sha256:{model.digest}",
            "options": options,
            "pictures": self.images,
            "source": self._source.digest if self._source else "",
            "listing": self._source.listing.summary if self._source else None,
            "shard": job.shard,
            "pack": job.pack,
        }

    async def shard(self, number: int) -> list[Record]:
        """Process and write one shard; raises IgnError or OSError if something else than an image
        fails.
        """
        if (
            complete := await asyncio.to_thread(self._output.records, number)
        ) is not None:  # by another worker
            return complete
        start = number * self._job.shard
        stop = min(start + self._job.shard, self.images)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = []
                while start < stop:
                    await self._ahead.acquire()
                    items = await self._items(start, min(start + _AT_ONCE, stop))
                    tasks.append(group.create_task(self._process(number, start, items)))
                    start += len(items)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        made = [each for task in tasks for each in task.result()]
        if self._job.pack != "files":
            file = await self._services.codec.run("encode", lambda _: packed(self._job.pack, made))
            await self._output.write(number, [(self._folder(number), file)])
        return await asyncio.to_thread(self._output.finish, number, [record for record, _ in made])

    def _folder(self, number: int) -> str:
        return f"{number:06}" if self._job.pack == "files" else f"{number:06}.{self._job.pack}"

    async def _process(self, shard: int, start: int, items: Sequence[Item]) -> Made:
        """Records of some images, each with its image unless that is written."""
        await self._pipeline.run(items)
        made = [
            (self._record(shard, start + index, item), item.content)
            for index, item in enumerate(items)
        ]
        if self._job.pack == "files":
            await self._output.write(
                shard, [(record["picture"], image) for record, image in made if image]
            )
            made = [(record, b"") for record, _ in made]
        self._ahead.release()
        return made

    async def _items(self, start: int, stop: int) -> list[Item]:
        options = self._job.options
        if isinstance(options, GenerateRequest):
            return [Item(options.offset + index) for index in range(start, stop)]
        images = await self._source.fetch(start, stop) if self._source else []
        return [Item(image.content, image.name) for image in images]

    def _record(self, shard: int, index: int, item: Item) -> Record:
        """The line of an image in the manifest, with its file name or its error."""
        record = dict.fromkeys(COLUMNS) | item.measures | {"index": index}
        options = self._job.options
        if isinstance(options, GenerateRequest):
            record |= {"seed": options.seed or 0, "latent": options.offset + index}
        else:
            record["source"] = item.name.encode(
                errors="backslashreplace"
            ).decode()  # any bytes may be a name
        if item.error is not None:
            record |= {"error": item.error.error_code, "detail": _detail(item)}
        elif item.content and self._format is not None:
            record["picture"] = f"{self._folder(shard)}/{_file_name(record, self._format)}"
        return record


def _detail(item: Item) -> str:
    """Why an image failed, on one line, without what controls a terminal: names may hold any
    characters.
    """
    detail = item.error.detail if item.error else ""
    text = (
        detail
        if detail.startswith(item.name) or isinstance(item.source, int)
        else f"{item.name}: {detail}"
    )
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _file_name(record: Record, image_format: Format) -> str:
    """Index and shortened source name of an output, in characters that every file system allows."""
    stem = PurePosixPath(record["source"] or f"{record['seed']}-{record['latent']}").stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:_MAX_STEM]
    return f"{record['index']:08}-{name}{_SUFFIXES[image_format]}"
