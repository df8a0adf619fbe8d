"""Images through a model in this process, as through the endpoints: the one way of `ign bulk` and
of `--local`.

    decode (codec threads) ─ run (scheduler) ─ encode (codec threads)

Several groups of images are at different places at once. Of large images, two run at a time, so the
model has tiles while one of them begins or ends.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from service.api.app_state import AppState
from service.api.native.responses import in_distribution_fields, measures
from service.api.native.schemas import (
    GenerateRequest,
    ProjectOptions,
    ScoreOptions,
    image_size,
    noise_of,
    step_params,
)
from service.bulk.places import gather_all
from service.domain.errors import (
    IgnError,
    InvalidContent,
    ModelFailure,
    RequestError,
    StartupError,
    reason_of,
)
from service.domain.latents import FloatRow, NoiseSource
from service.domain.tasks import KeepMask, Result, SchedulingParams, StepParams, blend, with_chroma
from service.images.decode import (
    DecodeLimits,
    EncodedImage,
    ImageBytes,
    Picture,
    Pixels,
    memory_for,
)
from service.images.encode import encode, encode_npy, enlarge, to_uint8
from service.images.formats import Resolution, resolution_of, with_resolution
from service.images.pool import CodecThread
from service.images.prepare import Mask, keep_mask, prepare, to_mask

Options = GenerateRequest | ProjectOptions | ScoreOptions

SCHEMAS: Final[Mapping[str, type[Options]]] = {
    "generate": GenerateRequest,
    "project": ProjectOptions,
    "score": ScoreOptions,
}
"""The options of each task: those of the endpoint of the same name."""
# groups of an instance: one on the device, one waiting, one being decoded, one encoded
_IN_FLIGHT: Final = 4
_LARGE: Final = 1 << 23  # pixels
_MAX_PAGES: Final = 1 << 16  # of a TIFF


def parse_options(task: str, values: Mapping[str, Any]) -> Options:
    """The options of a task, of ``values`` that may hold others and None; raises StartupError."""
    names = {name for schema in SCHEMAS.values() for name in schema.model_fields}
    try:
        return SCHEMAS[task].model_validate(
            {k: v for k, v in values.items() if k in names and v is not None}
        )
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

    picture: Picture | None = None
    resolution: Resolution | None = None
    row: FloatRow | None = None  # (C, H, W) in the model's units: the input, then the output
    chroma: FloatRow | None = None  # (3, H, W) of a colour image whose luma is the row
    keep: KeepMask | None = None
    pixels: Pixels | None = None

    def fail(self, error: IgnError) -> None:
        """Keep the error, without what its frames hold."""
        self.error = error.with_traceback(None)
        self.row = None
        self.picture = None


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
        self._upload = options if isinstance(options, ScoreOptions) else None
        self._made = options if isinstance(options, GenerateRequest | ProjectOptions) else None
        try:
            self.model = services.registry.resolve(options.model)
            self.steps = self._chosen_steps()
        except RequestError as exc:  # errors that an endpoint returns to its caller
            raise StartupError(exc.detail) from exc
        self._is_tiled = self.model.card.tiles is not None
        # a tiled image may be large
        self._group = 1 if self._is_tiled else services.settings.max_batch_rows
        self._turns = asyncio.Semaphore(
            _IN_FLIGHT * (1 if self._is_tiled else len(self.model.loaded.instances))
        )
        self._two_large = asyncio.Semaphore(2)

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
        return await self._codec.run(
            "decode", lambda thread: [*map(Item, file.pages(thread, self._limits, _MAX_PAGES))]
        )

    async def run(self, items: Sequence[Item]) -> None:
        """Run any number of images; raises IgnError if something else than an image fails."""
        groups = range(0, len(items), self._group)
        await gather_all(self._run(items[start : start + self._group]) for start in groups)

    async def _run(self, items: Sequence[Item]) -> None:
        async with self._turns:
            await self._codec.run("decode", partial(self._decode, items))
            async with self._two_large if any(map(_is_large, items)) else nullcontext():
                if self._is_tiled:  # else the row is small, and the picture may be large
                    await self._codec.run("decode", lambda _: self._prepare(items))
                await self._run_isolating([item for item in items if item.row is not None])
            await self._codec.run("encode", lambda _: self._encode(items))

    def _decode(self, items: Iterable[Item], thread: CodecThread) -> None:
        for item in items:
            try:
                if isinstance(item.source, RequestError):
                    raise item.source
                if self._mask is None and self._mask_file is not None:
                    self._mask = to_mask(thread, self._mask_file.open(thread, self._limits))
                if isinstance(item.source, bytes):
                    item.resolution = resolution_of(item.source) if self._is_tiled else None
                    item.source = ImageBytes(item.name, item.source).open(thread, self._limits)
                if isinstance(item.source, EncodedImage):
                    with memory_for(item.source.pixels):
                        item.picture = item.source.decode(thread)
                        item.source = b""  # it holds the pixels, too
            except RequestError as exc:
                item.fail(exc)
            if not self._is_tiled:
                self._prepare([item])

    def _prepare(self, items: Iterable[Item]) -> None:
        """Draw noise, or fit a decoded image to the model's input as `/project` does."""
        made = self._made
        for item in items:
            if isinstance(item.source, int) and isinstance(made, GenerateRequest):
                (item.row,) = self._noise.rows(made.seed or 0, item.source, 1, made.noise_scale)
            elif (picture := item.picture) is not None and self._upload is not None:
                card = self.model.card.sized(picture.image.size[::-1])
                resize = self._upload.resize
                try:
                    if self._mask is not None:
                        item.keep = keep_mask(
                            self._mask, picture, card, resize=resize, field="mask"
                        )
                    prepared = prepare(picture, card, resize=resize, invert=self._upload.invert)
                    item.row, item.measures["inverted"], item.chroma = prepared
                except RequestError as exc:
                    item.fail(exc)
                item.picture = None

    async def _run_isolating(self, items: Sequence[Item]) -> None:
        """Run all rows as one request. If the model fails, run each alone, so that only the bad row
        gets the error.
        """
        if not items:
            return
        try:
            result = await self._applied(items)
        except (ModelFailure, RequestError) as exc:
            if len(items) == 1:
                items[0].fail(exc)
            else:
                for item in items:
                    await self._run_isolating([item])
            return
        await self._codec.run("encode", lambda _: self._take(items, result))

    async def _applied(self, items: Sequence[Item]) -> Result:
        rows = [item.row for item in items if item.row is not None]
        keep = [item.keep for item in items if item.keep is not None]
        params = SchedulingParams(step_params=self.steps)
        if self._is_tiled:
            return await self.model.run_tiles(rows, keep or None, lambda: params, self._codec.run)
        return await self.model.scheduler.run(
            np.stack(rows), replace(params, keep_mask=np.stack(keep) if keep else None)
        )

    def _take(self, items: Sequence[Item], result: Result) -> None:
        """Give the items their measures, and their pixels instead of their rows."""
        strength = self._made.strength if isinstance(self._made, ProjectOptions) else 1.0
        for index, item in enumerate(items):
            item.measures |= measures(result, index)
            item.measures |= in_distribution_fields(self.model.card, float(result.distance[index]))
            if self._made and item.row is not None:
                item.row = with_chroma(blend(item.row, result.rows[index], strength), item.chroma)
                if self._made.format != "npy":
                    item.pixels = to_uint8(item.row, self.model.card)
                    item.row = None
            item.chroma = item.keep = None

    def _encode(self, items: Iterable[Item]) -> None:
        """Encode the images, in place of their pixels."""
        for item in items:
            try:
                item.content = self._file(item)
            except RequestError as exc:
                item.fail(exc)
            item.row = item.pixels = None

    def _file(self, item: Item) -> bytes:
        made = self._made
        pixels = item.pixels
        if pixels is None or made is None or made.format == "npy":
            return b"" if item.row is None or made is None else encode_npy(item.row)
        if pixels.size * made.scale**2 > self._limits.max_pixels * 3:
            raise InvalidContent.field("scale", "the image would have too many pixels")
        content = encode(enlarge(pixels, made.scale, made.resample), made.format)
        return (
            with_resolution(content, item.resolution)
            if item.resolution and made.scale == 1
            else content
        )


def _is_large(item: Item) -> bool:
    return item.picture is not None and prod(item.picture.image.size) > _LARGE
