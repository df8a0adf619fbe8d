"""The work of the endpoints that return images or scores: what it takes, how its images are
decoded, and its responses: JSON with base64 images, a raw image, a contact sheet, an animation, or
`.npy`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Any, ClassVar, Final, Self

import numpy as np

from service.api.message import compact_json
from service.api.native.schemas import ImageOptions
from service.api.native.uploads import (
    OpenUpload,
    Upload,
    decode_large,
    decode_small,
    open_upload,
)
from service.api.negotiation import Json, Media
from service.api.pipeline import InputRows, Work, count_codec
from service.api.request import Plan, RawHeaders
from service.api.stream import event
from service.artifact.card import Card
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow
from service.domain.tasks import Result, StepOutput, StreamProgress, shown_result, shown_step
from service.images.decode import Pixels
from service.images.encode import (
    AnimationFormat,
    ImageFormat,
    animate,
    check_sides,
    contact_sheet,
    encode,
    encode_base64,
    encode_many,
    encode_npy,
    encode_tiff,
    enlarge,
    sheet_size,
    to_uint8,
)

RASTER: Final[Mapping[Media, ImageFormat]] = {
    Media.PNG: "png",
    Media.WEBP: "webp",
    Media.JPEG: "jpeg",
}
ANIMATED: Final[Mapping[Media, AnimationFormat]] = {
    Media.WEBP: "webp",
    Media.GIF: "gif",
    Media.APNG: "apng",
}
_FORMATS: Final = {**RASTER, **ANIMATED}
# values; encoding so few takes less time than waking a thread of the codec pool
INLINE_VALUES: Final = 1 << 13
_FLOAT_BYTES: Final = 4
_TEXTS: Final = (Media.JSON, Media.EVENTS)  # their images are base64


@dataclass(slots=True, kw_only=True, eq=False)
class RowWork(Work):
    """A request whose response shows its rows as images, or measures them.

    ``source`` is the upload, or makes the rows: in a thread of the codec pool, if ``is_large``.
    ``labels`` has for each image the members that are not in the result: `index`, `t`, `row`,
    `col`. ``members`` precede `images` in the JSON body. A sheet has ``columns``, or
    ceil(√N) for None. With ``fps`` above 0, WebP, GIF and APNG are animations. ``strength`` is the
    s of (1−s)·x + s·f^k(x), 0…1. ``sizes`` are those of the rows, (H, W), if the model takes any
    size (``is_tiled``); the headers of an upload tell them.
    """

    options: ImageOptions
    source: Upload | Callable[[], InputRows]
    labels: Sequence[Json]
    members: Mapping[str, Any] = field(default_factory=dict)
    columns: int | None = None
    fps: int = 0
    strength: float = 1.0
    sizes: Sequence[tuple[int, int]] = ()
    opened: OpenUpload | None = None

    encoding_bytes: ClassVar[int] = 0
    """Bytes that encoding takes beside the response, for each value of the largest image; of models
    that take any size.
    """

    def make_plan(self) -> Plan:
        """Check what the response holds; of uploads that tell it, read the headers first."""
        options = self.options
        if self.must_open:
            assert isinstance(self.source, Upload)  # noqa: S101 - nothing else is planned late
            self.opened = open_upload(self.api, self.source, self.model.card)
            self.sizes = [image.size for image in self.opened.images]
            self.labels = [{"index": index} for index in range(len(self.sizes))]
        if not self.is_tiled:
            self.sizes = [self.model.card.shape[1:]] * len(self.labels)
        self._check_format()
        held, values = self._held()
        self.has_large_response = bool(
            values * options.scale**2 > INLINE_VALUES
            or self.params.record
            or options.gap
            or (self.fps and self.is_animation)
            or self.is_tiled
        )
        rows = len(self.labels)
        if self.is_tiled:
            rows, tile_bytes = self.model.plan_tiles(self.sizes)
            held += tile_bytes
        return Plan(rows=rows, bytes=held)

    @property
    def shown_sizes(self) -> Sequence[tuple[int, int]]:
        """(H, W) of the images that `shown` makes, before they are enlarged."""
        return self.sizes

    @property
    def is_animation(self) -> bool:
        """Whether the body is an animation."""
        return self.fps > 0 and self.api.media in ANIMATED

    @property
    def is_array(self) -> bool:
        """Whether the images are arrays of numbers, or TIFF, which holds such."""
        media = self.api.media
        return self.options.format == "npy" if media in _TEXTS else media in (Media.NPY, Media.TIFF)

    def _check_format(self) -> None:
        """Raise, before the model runs, if the format cannot hold the response."""
        media = self.api.media
        options = self.options
        if self.params.record and media not in _TEXTS:
            raise InvalidContent.field(
                "record", f"only JSON and event streams carry a trajectory, not {media}"
            )
        if media is Media.NPY and len(set(self.shown_sizes)) > 1:
            raise InvalidContent.field(
                "image", "one .npy array holds images of one size; ask for JSON with format npy"
            )
        if options.scale > 1 and self.is_array:
            raise InvalidContent.field(
                "scale", "only images of 8 bits are enlarged, not arrays and TIFF"
            )
        if _layout(options) or self.is_tiled or len(self.labels) > 1:
            self._check_size(is_sheet=media in RASTER and not self.is_animation)

    def _check_size(self, *, is_sheet: bool) -> None:
        """Raise for options that only a sheet has, for sides longer than the format allows, and for
        too many pixels.
        """
        options = self.options
        media = self.api.media
        settings = self.api.settings.for_images(self.model.card.tiles)
        count = len(self.labels)
        recorded = len(self.params.record)
        height, width = (
            options.scale * max(sides) for sides in zip(*self.shown_sizes, strict=True)
        )
        for name in ("columns", "gap"):
            if getattr(options, name) and not is_sheet:
                shown = "an animation" if self.is_animation else media
                raise InvalidContent.field(
                    name, f"only a sheet as PNG, WebP or JPEG has {name}, not {shown}"
                )
        if is_sheet:
            columns = options.columns or self.columns
            width, height = sheet_size(count, (height, width), columns=columns, gap=options.gap)
            count = 1
        if not self.is_array:
            encoded = options.format if media in _TEXTS else _FORMATS[media]
            check_sides(encoded, width, height)
        layout = _layout(options)
        if layout or (self.is_tiled and is_sheet and len(self.labels) > 1):
            name = layout or "image"
            pixels = count * (1 + recorded) * width * height
            _check_pixels(name, "response", pixels, "IGN_MAX_PIXELS", settings.max_pixels)
        if recorded and self.is_tiled:
            _check_pixels(
                "record",
                "trajectory",
                (1 + recorded) * sum(map(prod, self.shown_sizes)),
                "four times IGN_MAX_PIXELS",
                settings.max_request_pixels,
            )

    def _held(self) -> tuple[int, int]:
        """Bytes of the response and of the arrays that it is made from, at most; and the numbers in
        its images, before they are enlarged.
        """
        card = self.model.card
        media = self.api.media
        recorded = len(self.params.record)
        channels = (card if card.color is None else card.coloured).shape[0]
        pixels = [*map(prod, self.sizes)]
        values = channels * sum(pixels)
        shown = channels * sum(map(prod, self.shown_sizes))
        encoded = shown * (_FLOAT_BYTES if self.is_array else self.options.scale**2)
        # Input, result and recorded steps; chroma is kept, and blending makes a new result.
        arrays = 2 + recorded + bool(card.color) + (self.strength != 1.0 or shown != values)
        if media is Media.JSON:
            encoded = encoded * 4 // 3
        if media is Media.EVENTS:  # it sends its images one by one
            encoded = encoded // len(self.labels)
        else:
            encoded *= 1 + recorded
        held = arrays * values * _FLOAT_BYTES + encoded
        if self.is_tiled:
            # Of one image at a time: its levels, and the result of a further pass.
            is_repeated = self.params.steps > 1 or self.params.score
            each = 1 + _FLOAT_BYTES * is_repeated + self.encoding_bytes
            held += channels * max(pixels) * each
        return held, values

    @classmethod
    def decode(cls, works: Sequence[Self]) -> None:
        """Set the inputs of small requests; uploads are prepared together."""
        start = time.perf_counter()
        uploads = {work: work.source for work in works if isinstance(work.source, Upload)}
        if uploads:
            made = decode_small([*uploads.values()], works[0].model.card)
            for work, inputs in zip(uploads, made, strict=True):
                work.inputs = inputs
            count_codec("decode", [*uploads], start)
        for work in works:
            if not isinstance(work.source, Upload):
                work.inputs = work.source()

    def decode_large(self) -> None:
        """Set the inputs of one request."""
        source = self.source
        if not isinstance(source, Upload):
            self.inputs = source()
            return
        opened = self.opened or open_upload(self.api, source, self.model.card)
        self.inputs = decode_large(self.api, source, opened, self.model.card)

    def shown(self) -> Result:
        """The result as the caller is shown it, with its trajectory; called where `encode` runs."""
        inputs = self.inputs
        if self.strength == 1.0 and not inputs.chroma:
            return self.result
        return shown_result(self.result, inputs.rows, self.strength, inputs.chroma)


def _layout(options: ImageOptions) -> str:
    """The first option that changes the size of the response's images or sheet, or nothing."""
    if options.scale > 1:
        return "scale"
    return "gap" if options.gap else "columns" if options.columns else ""


def _check_pixels(field: str, what: str, pixels: int, setting: str, limit: int) -> None:
    if pixels > limit:
        message = f"the {what} would have {pixels} pixels; the limit, {setting}, is {limit}"
        raise InvalidContent.field(field, message, code="image_too_large")


class NativeWork(RowWork):
    """Work whose response has the form of this service.

    A subclass overrides `shown` for other pixels (float32 rows: a list or an array, as it got them)
    and, if there are more or fewer, `shown_sizes`: the limits of the response and of memory follow
    from both sizes. For another body it overrides `encode`, which gets all works of its class and
    one model that end together, and `encoding_bytes`; for a stream, `event`. It has no fields of
    its own: `source.options` are those of an upload, and ``options`` are `ImageOptions()` where a
    caller has no choice.
    """

    __slots__ = ()

    @classmethod
    def encode(cls, works: Sequence[Self]) -> None:
        """Encode images, those of plain PNGs together."""
        results = {work: work.shown() for work in works}
        files: dict[Self, list[bytes]] = {}
        plain = [work for work in works if _is_plain_png(work, results[work])]
        if plain:
            rows = np.concatenate([results[work].rows for work in plain])
            pngs = iter(encode_many(to_uint8(rows, works[0].model.card), "png"))
            files = {work: [*islice(pngs, len(work.labels))] for work in plain}
        for work, result in results.items():
            work.media_type = work.api.media
            if work.media_type is Media.JSON:
                work.content = _json_pieces(_images(work, result, files.get(work)))
            else:
                work.content = files.get(work) or [_raw(work, result)]
                work.result_headers = row_headers(result)

    def finish(self) -> None:
        """Complete the JSON."""
        if self.media_type is Media.JSON:
            # `timing` includes the time of encoding the images, so the rest of the body is written
            # after them, and the encoded images are inserted as text.
            before, images, after = compact_json(self._envelope([])).partition(b'"images":[]')
            self.content = [before + images[:-2], *self.content, after]

    async def event(self, item: StepOutput | StreamProgress | Result) -> bytes:
        """The events `step`, `progress` and `done`."""
        if isinstance(item, StreamProgress):
            return event("progress", item._asdict())
        if isinstance(item, StepOutput):
            return event("step", await step_members(self, item))
        images = [_image(self, item, index, None) for index in range(len(item.rows))]
        return event("done", self._envelope(images))

    def _envelope(self, images: list[Json]) -> Json:
        """The JSON body with its images."""
        card = self.model.card
        return {
            "model": {
                "name": card.name,
                "version": card.version,
                "digest": f"sha256:{self.model.digest}",
            },
            "request_id": self.api.request_id,
            **self.members,
            "images": images,
            "timing": self.api.timing(),
        }


def _is_plain_png(work: NativeWork, result: Result) -> bool:
    """Whether its images are PNGs that can be encoded together with those of others."""
    options = work.options
    media = work.api.media
    if options.scale > 1 or work.is_tiled or work.inputs.chroma:
        return False
    if result.rows[0].shape != work.result.rows[0].shape:
        return False
    return (media is Media.JSON and options.format == "png") or (
        media is Media.PNG and len(work.labels) == 1
    )


def _image(work: RowWork, result: Result, index: int, data: str | None) -> Json:
    """One member of `images`, without its trajectory; ``data`` is None in a stream, which has sent
    it already.
    """
    height, width = result.rows[index].shape[-2:]
    inverted = work.inputs.inverted
    return {
        **work.labels[index],
        **({"inverted": inverted[index]} if inverted else {}),
        "data": data,
        "format": work.options.format,
        "width": width * work.options.scale,
        "height": height * work.options.scale,
        **measures(result, index),
        "trajectory": None,
    }


def measures(result: Result, index: int) -> Json:
    """What a result says of one image, as responses show it."""
    return {
        "steps": int(result.steps[index]),
        "converged": bool(result.converged[index]),
        "distance": round_metric(result.distance[index]),
        "drift": None if result.drift is None else round_metric(result.drift[index]),
    }


def picture(row: FloatRow, card: Card, options: ImageOptions) -> str:
    """Encode one row (C, H, W) as a base64 image."""
    if options.format == "npy":
        return encode_base64(encode_npy(row))
    pixels = enlarge(to_uint8(row, card), options.scale, options.resample)
    return encode_base64(encode(pixels, options.format))


def round_metric(value: float | None) -> float | None:
    """A distance, drift or change as responses show it: rounded to 6 decimals."""
    return None if value is None else round(float(value), 6)


def _images(work: RowWork, result: Result, pngs: Sequence[bytes] | None) -> list[Json]:
    def encoded(row: FloatRow) -> str:
        work.api.check_not_over()
        return picture(row, work.model.card, work.options)

    data = map(encoded, result.rows) if pngs is None else map(encode_base64, pngs)
    images = [_image(work, result, index, text) for index, text in enumerate(data)]
    for image, steps in zip(images, result.trajectory, strict=True):
        if steps:
            image["trajectory"] = [
                {"step": step.step, "data": encoded(step.row), "change": round_metric(step.change)}
                for step in steps
            ]
    return images


async def step_members(work: RowWork, step: StepOutput) -> Json:
    """The members of the event `step`."""
    inputs = work.inputs
    step = shown_step(step, inputs.rows, work.strength, inputs.chroma)
    options = work.options

    def encode() -> str:
        return picture(step.row, work.model.card, options)

    if step.row.size * options.scale**2 > INLINE_VALUES:
        data = await work.api.run_codec("encode", encode)
    else:
        start = time.perf_counter()
        data = encode()
        count_codec("encode", [work], start)
    return {
        "index": work.labels[step.index]["index"],
        "step": step.step,
        "data": data,
        "format": options.format,
        "change": round_metric(step.change),
    }


def _json_pieces(images: list[Json]) -> list[bytes]:
    """The JSON of the images, an image a piece.

    One call of `json` holds the interpreter lock until it ends: for 60 MB, the event loop would
    wait half a second.
    """
    pieces = [b"["]
    for each in images:
        pieces += [compact_json(each), b","]
    return [*pieces[:-1], b"]"]


def _raw(work: RowWork, result: Result) -> bytes:
    rows = result.rows
    options = work.options
    card = work.model.card
    if isinstance(rows, list):  # beside a colour image, grey ones are in colour, too
        channels = max(map(len, rows))
        rows = [np.broadcast_to(row, (channels, *row.shape[1:])) for row in rows]
    if work.api.media is Media.NPY:
        return encode_npy(np.asarray(rows))
    if work.api.media is Media.TIFF:
        return encode_tiff(rows, card)
    if work.is_animation:
        return animate(
            to_uint8(np.asarray(rows), card),
            ANIMATED[work.api.media],
            fps=work.fps,
            scale=options.scale,
            resample=options.resample,
            check=work.api.check_not_over,
        )
    images = list[Pixels]()
    for row in rows:
        work.api.check_not_over()
        images.append(enlarge(to_uint8(row, card), options.scale, options.resample))
    if len(images) == 1:
        return encode(images[0], RASTER[work.api.media])
    sheet = contact_sheet(images, card, columns=options.columns or work.columns, gap=options.gap)
    return encode(sheet, RASTER[work.api.media])


def row_headers(result: Result) -> RawHeaders:
    """Headers of a response that is no JSON: what the JSON says of each image."""
    named = (
        (b"x-ign-steps", result.steps),
        (b"x-ign-distance", result.distance),
        (b"x-ign-drift", result.drift),
    )
    return [
        (name, ",".join([str(round(value, 6)) for value in values.tolist()]).encode("ascii"))
        for name, values in named
        if values is not None
    ]
