"""Images through a model in this process, as through the endpoints: the one way of `ign bulk` and
of `--local`.

    decode (codec threads) ─ run (scheduler) ─ encode (codec threads)

Several groups of images are at different places at once. Of images that are cut into tiles, two run
at a time, so the model has tiles while one of them begins or ends.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from service.api.app_state import AppState
from service.api.native.endpoints import image_size, noise_of, step_params
from service.api.native.responses import measures
from service.api.native.schemas import GenerateRequest, ProjectOptions, UploadOptions
from service.api.native.score import in_distribution_fields
from service.bulk.places import task_group
from service.domain.errors import (
    IgnError,
    InvalidContent,
    ModelFailure,
    RequestError,
    StartupError,
    reason_of,
)
from service.domain.latents import FloatRow, NoiseSource
from service.domain.tasks import KeepMask, Result, SchedulingParams, StepParams, shown_row
from service.images.decode import (
    DecodeLimits,
    Dpi,
    EncodedImage,
    ImageBytes,
    memory_for,
)
from service.images.encode import encode, encode_npy, enlarge, to_uint8
from service.images.prepare import Mask, keep_mask, prepare, to_mask

Options = GenerateRequest | ProjectOptions | UploadOptions

SCHEMAS: Final[Mapping[str, type[Options]]] = {
    "generate": GenerateRequest,
    "project": ProjectOptions,
    "score": UploadOptions,
}
"""The options of each task: those of the endpoint of the same name."""


def parse_options(task: str, values: Mapping[str, Any]) -> Options:
    """The options of a task, of ``values`` that may hold others, None and texts; raises
    StartupError.
    """
    schema = SCHEMAS[task]
    given = {name: values[name] for name in schema.model_fields if values.get(name) is not None}
    try:
        return schema.model_validate(given, strict=False)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "-".join(str(part).replace("_", "-") for part in first["loc"])
        raise StartupError(f"{'-' if len(name) == 1 else '--'}{name}: {reason_of(first)}") from None


@dataclass(slots=True, eq=False)
class Item:
    """An image on its way: a file, or why there is none, or the number of a latent; then its
    result.
    """

    source: bytes | EncodedImage | RequestError | int
    name: str = "image"  # in errors
    content: bytes = b""  # of the result; empty for a score, and after an error
    measures: dict[str, Any] = field(default_factory=dict)  # as in responses
    error: IgnError | None = None

    dpi: Dpi | None = None
    row: FloatRow | None = None  # (C, H, W) in the model's units
    chroma: FloatRow | None = None  # (3, H, W) of a colour image whose luma is the row
    keep: KeepMask | None = None

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keep what is wrong with the image, without what the frames of the error hold."""
        try:
            yield
        except (ModelFailure, RequestError) as exc:
            self.error = exc.with_traceback(None)
            self.row = None


class Pipeline:
    """Runs images through the model of some options; ``mask`` is the file of one for all.

    Raises StartupError if the options ask for something that the service rejects.
    """

    def __init__(self, options: Options, services: AppState, mask: bytes | None = None) -> None:
        self._services = services
        self._codec = services.codec
        self._limits = DecodeLimits(max_pixels=services.settings.max_pixels)
        self._mask: Mask | None = None
        self._mask_file = None if mask is None else ImageBytes("mask", mask)
        self._upload = options if isinstance(options, UploadOptions) else None
        self._made = options if isinstance(options, GenerateRequest | ProjectOptions) else None
        try:
            self.model = services.registry.resolve(options.model)
            self.steps = self._chosen_steps()
        except RequestError as exc:  # errors that an endpoint returns to its caller
            raise StartupError(exc.detail) from exc
        self._is_tiled = self.model.card.tiles is not None
        self._group = services.settings.max_batch_rows
        # of an instance, one on the device, one waiting, one being decoded, one encoded
        turns = 4 * len(self.model.loaded.instances)
        if self._is_tiled:  # each may be large
            self._group = 1
            turns = 2
        self._turns = asyncio.Semaphore(turns)

    def _chosen_steps(self) -> StepParams:
        """How f is applied to each image; raises InvalidContent for too many, or without noise."""
        options = self._made
        card = self.model.card
        settings = self._services.settings
        self._noise = self.model.noise
        if options is None:
            return StepParams(steps=1, score=True)
        if options.format == "npy" and options.scale > 1:
            raise InvalidContent.field("scale", "only images of 8 bits are enlarged, not arrays")
        if isinstance(options, ProjectOptions):
            return step_params(options, recommended=card.steps.project, rows=1, settings=settings)
        noise_of(card)
        size = image_size(options.model_copy(update={"n": 1}), card, settings)
        self._noise = NoiseSource((card.shape[0], *size))
        return step_params(options, recommended=card.steps.generate, rows=1, settings=settings)

    async def pages(self, source: bytes | int) -> list[Item]:
        """A latent, an image file, or each page of a TIFF; raises RequestError if one is too
        large.
        """
        if isinstance(source, int) or not (file := ImageBytes("image", source)).may_have_pages:
            return [Item(source)]
        # the limit is one of the pages of a TIFF
        return await self._codec.run(
            "decode", lambda: [*map(Item, file.pages(self._limits, 1 << 16))]
        )

    async def run(self, items: Sequence[Item]) -> None:
        """Run any number of images; raises IgnError if something else than an image fails."""
        async with task_group() as tasks:
            for start in range(0, len(items), self._group):
                tasks.create_task(self._run(items[start : start + self._group]))

    async def _run(self, items: Sequence[Item]) -> None:
        async with self._turns:
            await self._codec.run("decode", partial(self._decode, items))
            await self._run_isolating([item for item in items if item.row is not None])

    def _decode(self, items: Iterable[Item]) -> None:
        for item in items:
            with item.failing():
                self._prepare(item)

    def _prepare(self, item: Item) -> None:
        """Draw noise, or fit a decoded image to the model's input as `/project` does."""
        made = self._made
        upload = self._upload
        if isinstance(item.source, RequestError):
            raise item.source
        if isinstance(item.source, bytes):
            item.source = ImageBytes(item.name, item.source).open(self._limits)
        if isinstance(item.source, int) and isinstance(made, GenerateRequest):
            (item.row,) = self._noise.rows(made.seed or 0, item.source, 1, made.noise_scale)
        elif isinstance(item.source, EncodedImage) and upload is not None:
            if self._mask is None and self._mask_file is not None:
                self._mask = to_mask(self._mask_file.open(self._limits))
            if upload.model is None:
                self._services.registry.check_default(item.name, item.source.size)
            with memory_for(item.source.pixels):
                picture = item.source.decode()
                item.source = b""  # it holds the pixels, too
            item.dpi = picture.dpi if self._is_tiled else None
            card = self.model.card.sized(picture.image.size[::-1])
            if self._mask is not None:
                item.keep = keep_mask(self._mask, picture, card, resize=upload.resize, field="mask")
            item.row, item.measures["inverted"], item.chroma = prepare(
                picture, card, resize=upload.resize, invert=upload.invert
            )

    async def _run_isolating(self, items: Sequence[Item]) -> None:
        """Run all rows as one request. If the model fails, run each alone, so that only the bad row
        gets the error.
        """
        if len(items) == 1:
            with items[0].failing():
                await self._apply(items)
        elif items:
            try:
                await self._apply(items)
            except (ModelFailure, RequestError):
                for item in items:
                    await self._run_isolating([item])

    async def _apply(self, items: Sequence[Item]) -> None:
        rows = [item.row for item in items if item.row is not None]
        keep = [item.keep for item in items if item.keep is not None]
        params = SchedulingParams(step_params=self.steps)
        if self._is_tiled:
            result = await self.model.run_tiles(rows, keep or None, lambda: params, self._codec.run)
        else:
            params = replace(params, keep_mask=np.stack(keep) if keep else None)
            result = await self.model.scheduler.run(np.stack(rows), params)
        del rows
        await self._codec.run("encode", lambda: self._finish(items, result))

    def _finish(self, items: Sequence[Item], result: Result) -> None:
        """Give the items their measures and files, instead of their rows."""
        for index, item in enumerate(items):
            item.measures |= measures(result, index)
            item.measures |= in_distribution_fields(self.model.card, float(result.distance[index]))
            if self._made is not None and item.row is not None:
                with item.failing():
                    item.content = self._file(item, item.row, result.rows[index], self._made)
            item.row = item.chroma = item.keep = None

    def _file(
        self, item: Item, start: FloatRow, end: FloatRow, made: GenerateRequest | ProjectOptions
    ) -> bytes:
        strength = made.strength if isinstance(made, ProjectOptions) else 1.0
        row = shown_row(start, end, strength, item.chroma)
        if made.format == "npy":
            return encode_npy(row)
        pixels = to_uint8(row, self.model.card)
        if pixels.size * made.scale**2 > self._limits.max_pixels * 3:
            raise InvalidContent.field("scale", "the image would have too many pixels")
        dpi = item.dpi if made.scale == 1 else None
        return encode(enlarge(pixels, made.scale, made.resample), made.format, dpi)
