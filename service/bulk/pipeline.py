"""The job of a run, and one shard of it: read and decode inputs, run the model, encode and write, as the endpoints do.

    range of inputs ─ read ─ decode (codec threads) ─ run (scheduler) ─ encode (codec threads) ─ write ─ records

Several ranges of `max_batch_rows` are at different places at once, and more are read ahead, up to a number of bytes.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from service.api.app_state import AppState
from service.api.native.responses import in_distribution_fields, round_metric
from service.api.native.schemas import Format, GenerateRequest, ImageOptions, ProjectOptions, ScoreOptions
from service.api.native.validation import no_noise, step_params
from service.bulk.output import COLUMNS, Fingerprint, Output, Pack, Record, packed
from service.bulk.places import Contents, gather_all
from service.bulk.sources import Files, SourceItem
from service.domain.errors import IgnError, InvalidContent, ModelFailure, RequestError, StartupError, UnknownModel
from service.domain.latents import FloatRow
from service.domain.tasks import Images, Result, SchedulingParams, StepParams, blend_result, with_chroma
from service.images.decode import DecodeLimits, ImageBytes
from service.images.encode import encode, encode_npy, to_uint8
from service.images.pool import CodecThread
from service.images.prepare import prepare

Options = GenerateRequest | ProjectOptions | ScoreOptions

SCHEMAS: Final[Mapping[str, type[Options]]] = {
    "generate": GenerateRequest,
    "project": ProjectOptions,
    "score": ScoreOptions,
}
"""The options of each task: those of the endpoint of the same name."""
_LAYOUT: Final = 2  # of the output folder; a run does not continue a folder of another layout
_SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy"}
_MAX_STEM: Final = 80
_BATCHES_IN_FLIGHT: Final = 4  # of an instance: one on the device, one waiting, one being decoded, one encoded
_READ_AHEAD: Final = 256 << 20  # bytes of encoded images that are read but not yet written


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one run does."""

    options: Options
    source: str = ""  # path or URL of the images; empty for `generate`
    column: str = "image"  # of a Parquet table, with the images
    shard: int = 1024  # images in each, ≥ 1
    pack: Pack = "files"
    part: tuple[int, int] = (1, 1)  # shards of this worker: k, n are every n-th, from the k-th


@dataclass(slots=True, eq=False)
class _Item:
    record: Record  # the line of one image in the manifest, filled in step by step
    row: FloatRow | None = None  # (C, H, W) in the model's units: the input, then the output; None if there is none
    chroma: FloatRow | None = None  # (3, H, W) of a colour image whose luma is the row
    error: IgnError | None = None


class Pipeline:
    """Processes shards of one job, whose ``source`` may be open already.

    Raises StartupError if the job asks for something that the service rejects.
    """

    def __init__(self, job: Job, services: AppState, output: Output, source: Files | None) -> None:
        settings = services.settings
        self._job, self._services, self._output, self._source = job, services, output, source
        try:
            self.model = services.registry.resolve(job.options.model)
            self._step_params = self._chosen_steps()
        except (UnknownModel, InvalidContent) as exc:  # errors that an endpoint returns to its caller
            raise StartupError(exc.detail) from exc
        self.images = job.options.n if isinstance(job.options, GenerateRequest) else (source.images if source else 0)
        self._limits = DecodeLimits(max_pixels=settings.for_images(self.model.card.tiles).max_pixels)
        self._format = job.options.format if isinstance(job.options, GenerateRequest | ProjectOptions) else None
        batch_rows = 1 if self.model.card.tiles else settings.max_batch_rows  # an image of any size may be large
        self._batch_rows = min(batch_rows, settings.queue_rows, job.shard)
        in_flight = _BATCHES_IN_FLIGHT * len(self.model.loaded.instances)
        # The queue must have room for all batches in flight, or the scheduler would reject some.
        self._batches = asyncio.Semaphore(max(1, min(in_flight, settings.queue_rows // self._batch_rows)))
        self._ahead, self._is_room = list[int](), asyncio.Condition()  # bytes of each range that is read

    def _chosen_steps(self) -> StepParams:
        """How f is applied to each image; raises InvalidContent for too many, or without noise."""
        options, steps = self._job.options, self.model.card.steps
        if not isinstance(options, GenerateRequest | ProjectOptions):
            return StepParams(steps=1, score=True)
        if isinstance(options, GenerateRequest) and self.model.card.noise is None:
            raise no_noise(self.model.card)
        recommended = steps.generate if isinstance(options, GenerateRequest) else steps.project
        return step_params(options, recommended=recommended, rows=1, settings=self._services.settings)

    def fingerprint(self) -> Fingerprint:
        """Everything that determines the bytes of the output, as JSON values."""
        job = self._job
        unused = {"model", "record", *ImageOptions.model_fields} - {"format"}
        options = job.options.model_dump(mode="json", exclude=unused)
        if self._format:
            options["steps"] = self._step_params.steps
        return {
            "layout": _LAYOUT,
            "task": next(task for task, schema in SCHEMAS.items() if type(job.options) is schema),
            "model": self.model.ref,
            "digest": f"sha256:{self.model.digest}",
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
        ranges = [(first, min(first + self._batch_rows, stop)) for first in range(start, stop, self._batch_rows)]
        batches = await gather_all(self._process(number, *bounds) for bounds in ranges)
        records = [record for batch, _ in batches for record in batch]
        folder, contents = self._folder(number), [content for _, batch in batches for content in batch]
        for record in records:
            if record["picture"] is not None:
                record["picture"] = f"{folder}/{record['picture']}"
        if self._job.pack != "files":
            file = await self._services.codec.run("encode", lambda _: packed(self._job.pack, records, contents))
            await self._output.write(number, [(folder, file)])
        return await asyncio.to_thread(self._output.finish, number, records)

    def _folder(self, number: int) -> str:
        return f"{number:06}" if self._job.pack == "files" else f"{number:06}.{self._job.pack}"

    async def _process(self, shard: int, start: int, stop: int) -> tuple[list[Record], Contents]:
        """Records of some images, and those images that are still to be written."""
        codec, source = self._services.codec, self._source
        size = source.size(start, stop) if source else 0
        async with self._is_room:
            await self._is_room.wait_for(lambda: len(self._ahead) < 2 or sum(self._ahead) + size <= _READ_AHEAD)
            self._ahead.append(size)
        try:
            images = await source.fetch(start, stop) if source else []
            async with self._batches:
                items = await codec.run("decode", partial(self._read, start, stop, images))
                del images
                await self._run_isolating([item for item in items if item.row is not None])
                contents = await codec.run("encode", lambda _: self._encode(items))
            if self._job.pack == "files":
                await self._output.write(shard, [(f"{self._folder(shard)}/{name}", data) for name, data in contents])
                contents = []
        finally:
            self._ahead.remove(size)
            async with self._is_room:
                self._is_room.notify_all()
        return [item.record for item in items], contents

    def _read(self, start: int, stop: int, images: Sequence[SourceItem], thread: CodecThread) -> list[_Item]:
        """Seeded noise, or images decoded and fitted to the model's input as `/project` does."""
        options = self._job.options
        if not isinstance(options, GenerateRequest):
            return [self._decoded(start + i, image, options, thread) for i, image in enumerate(images)]
        seed, first = options.seed or 0, options.offset + start
        rows = self.model.noise.rows(seed, first, stop - start, options.noise_scale)
        return [_Item(_record(index=start + i, seed=seed, latent=first + i), row) for i, row in enumerate(rows)]

    def _decoded(
        self, index: int, image: SourceItem, options: ProjectOptions | ScoreOptions, thread: CodecThread
    ) -> _Item:
        item = _Item(_record(index=index, source=_printable(image.name)))
        try:
            if isinstance(image.content, RequestError):
                raise image.content
            picture = ImageBytes(image.name, image.content).open(thread, self._limits).decode(thread)
        except RequestError as exc:
            item.error = exc
        else:
            width, height = picture.image.size
            card = self.model.card.sized((height, width))
            prepared = prepare(picture, card, resize=options.resize, invert=options.invert)
            item.row, item.record["inverted"], item.chroma = prepared
        return item

    async def _run_isolating(self, items: Sequence[_Item]) -> None:
        """Run all rows as one request. If the model fails, run each alone, so that only the bad row gets the error."""
        if not items:
            return
        try:
            result = await self._run(items)
        except ModelFailure as exc:
            if len(items) == 1:
                items[0].row, items[0].error = None, exc
            else:
                for item in items:
                    await self._run_isolating([item])
            return
        for index, item in enumerate(items):
            item.row = with_chroma(result.rows[index], item.chroma) if self._format else None
            distance = float(result.distance[index])
            item.record |= {
                "steps": int(result.steps[index]),
                "converged": bool(result.converged[index]),
                "distance": round_metric(distance),
                "drift": None if result.drift is None else round_metric(result.drift[index]),
                **in_distribution_fields(self.model.card, distance),
            }

    async def _run(self, items: Sequence[_Item]) -> Result:
        images, options = [item.row for item in items if item.row is not None], self._job.options
        rows: Images = images if self.model.card.tiles else np.stack(images)
        params = SchedulingParams(step_params=self._step_params)
        if isinstance(rows, list):
            result = await self.model.run_tiles(rows, None, lambda: params, self._services.codec.run)
        else:
            result = await self.model.scheduler.run(rows, params)
        return blend_result(rows, result, options.strength if isinstance(options, ProjectOptions) else 1.0)

    def _encode(self, items: Sequence[_Item]) -> Contents:
        """Encode the images, drop their rows, and complete their records with the file name or the error."""
        contents = []
        for item in items:
            record, row = item.record, item.row
            if item.error is not None:
                record |= {"error": item.error.error_code, "detail": _detail(record["source"], item.error)}
            elif self._format is not None and row is not None:
                if self._format == "npy":
                    content = encode_npy(row)
                else:
                    content = encode(to_uint8(row, self.model.card), self._format)
                record["picture"] = _file_name(record, self._format)
                contents.append((record["picture"], content))
            item.row = item.chroma = None
        return contents


def _record(**known: Any) -> Record:
    return dict.fromkeys(COLUMNS) | known


def _detail(name: str | None, error: IgnError) -> str:
    detail = _printable(error.detail)
    return detail if name is None or detail.startswith(name) else f"{name}: {detail}"


def _printable(text: str) -> str:
    """Escape what UTF-8 cannot encode: file names of Linux may be any bytes."""
    return text.encode(errors="backslashreplace").decode()


def _file_name(record: Record, image_format: Format) -> str:
    """Index and shortened source name of an output, in characters that every file system allows."""
    stem = PurePosixPath(record["source"] or f"{record['seed']}-{record['latent']}").stem
    return f"{record['index']:08}-{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:_MAX_STEM]}{_SUFFIXES[image_format]}"
