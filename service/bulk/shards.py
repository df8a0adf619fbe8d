"""The job of a run, and one shard of it: read inputs, run the pipeline, write images and records.

Images are read in their order, some of them ahead of those that run.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from service.api.app_state import AppState
from service.api.native.schemas import Format, GenerateRequest, ImageOptions, ProjectOptions
from service.bulk.output import COLUMNS, Fingerprint, Output, Pack, Record, packed
from service.bulk.pipeline import SCHEMAS, Item, Options, Pipeline
from service.bulk.places import Contents
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


class Shards:
    """Processes shards of one job, whose ``source`` may be open already; raises StartupError as `Pipeline`."""

    def __init__(self, job: Job, services: AppState, output: Output, source: Files | None) -> None:
        self._job, self._services, self._output, self._source = job, services, output, source
        self._pipeline, options = Pipeline(job.options, services), job.options
        self.images = options.n if isinstance(options, GenerateRequest) else (source.images if source else 0)
        self._format = options.format if isinstance(options, GenerateRequest | ProjectOptions) else None
        self._ahead = asyncio.Semaphore(_READ_AHEAD)

    def fingerprint(self) -> Fingerprint:
        """Everything that determines the bytes of the output, as JSON values."""
        job, model = self._job, self._pipeline.model
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
        """Process and write one shard; raises IgnError or OSError if something else than an image fails."""
        if (complete := await asyncio.to_thread(self._output.records, number)) is not None:  # by another worker
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
        batches = [task.result() for task in tasks]
        records = [record for batch, _ in batches for record in batch]
        if self._job.pack != "files":
            contents = [content for _, batch in batches for content in batch]
            file = await self._services.codec.run("encode", lambda _: packed(self._job.pack, records, contents))
            await self._output.write(number, [(self._folder(number), file)])
        return await asyncio.to_thread(self._output.finish, number, records)

    def _folder(self, number: int) -> str:
        return f"{number:06}" if self._job.pack == "files" else f"{number:06}.{self._job.pack}"

    async def _process(self, shard: int, start: int, items: Sequence[Item]) -> tuple[list[Record], Contents]:
        """Records of some images, and those images that are still to be written."""
        await self._pipeline.run(items)
        records = [self._record(shard, start + index, item) for index, item in enumerate(items)]
        contents = [(one["picture"], item.content) for one, item in zip(records, items, strict=True) if one["picture"]]
        if self._job.pack == "files":
            await self._output.write(shard, contents)
            contents = []
        self._ahead.release()
        return records, contents

    async def _items(self, start: int, stop: int) -> list[Item]:
        options = self._job.options
        if isinstance(options, GenerateRequest):
            return [Item(options.offset + index) for index in range(start, stop)]
        images = await self._source.fetch(start, stop) if self._source else []
        return [Item(image.content, image.name) for image in images]

    def _record(self, shard: int, index: int, item: Item) -> Record:
        """The line of an image in the manifest, with its file name or its error."""
        record, options = dict.fromkeys(COLUMNS) | item.measures | {"index": index}, self._job.options
        if isinstance(options, GenerateRequest):
            record |= {"seed": options.seed or 0, "latent": options.offset + index}
        else:
            record["source"] = item.name.encode(errors="backslashreplace").decode()  # any bytes may be a name
        if item.error is not None:
            record |= {"error": item.error.error_code, "detail": _detail(item)}
        elif item.content and self._format is not None:
            record["picture"] = f"{self._folder(shard)}/{_file_name(record, self._format)}"
        return record


def _detail(item: Item) -> str:
    """Why an image failed, on one line, without what controls a terminal: names may hold any characters."""
    detail = item.error.detail if item.error else ""
    text = detail if detail.startswith(item.name) or isinstance(item.source, int) else f"{item.name}: {detail}"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _file_name(record: Record, image_format: Format) -> str:
    """Index and shortened source name of an output, in characters that every file system allows."""
    stem = PurePosixPath(record["source"] or f"{record['seed']}-{record['latent']}").stem
    return f"{record['index']:08}-{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:_MAX_STEM]}{_SUFFIXES[image_format]}"
