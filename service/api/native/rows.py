"""The work of the endpoints that return images or scores: what it takes, how its images are
decoded, and its stream of server-sent events.
"""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Final, Self

from starlette.types import Send

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
from service.api.pipeline import Event, Events, InputRows, Work, count_codec, count_rows
from service.api.problems import problem_body
from service.api.request import ApiRequest, Plan, RawHeaders, raw_headers
from service.domain.errors import DeadlineExceeded, InvalidContent, forget_frames
from service.domain.tasks import Result, StepOutput, StreamProgress, shown_result
from service.images.encode import AnimationFormat, ImageFormat, check_sides, sheet_size

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
# values; encoding so few takes less time than waking a thread of the codec pool
INLINE_VALUES: Final = 1 << 13
_FLOAT_BYTES: Final = 4
# seconds without an event; a comment line then makes proxies keep the connection open
_KEEPALIVE_S: Final = 10.0
_EVENTS: Final = raw_headers(
    {
        "Content-Type": f"{Media.EVENTS}; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
)
_TEXTS: Final = (Media.JSON, Media.EVENTS)  # their images are base64


@dataclass(slots=True, kw_only=True, eq=False)
class RowWork(Work):
    """A request whose response shows its rows as images, or measures them.

    ``source`` is the upload, or makes the rows: in a thread of the codec pool, if ``is_large``.
    ``labels`` has for each image the members that are not in the result: `index`, `inverted`, `t`,
    `row`, `col`. ``members`` precede `images` in the JSON body. A sheet has ``columns``, or
    ceil(√N) for None. With ``fps`` above 0, WebP, GIF and APNG are animations. ``strength`` is the
    s of (1−s)·x + s·f^k(x), 0…1. ``sizes`` are those of the rows, (H, W); the headers of an
    upload tell them, if the model takes any size (``is_tiled``).
    """

    options: ImageOptions
    source: Upload | Callable[[], InputRows]
    labels: Sequence[Json]
    members: Mapping[str, Any] = field(default_factory=dict)
    columns: int | None = None
    fps: int = 0
    strength: float = 1.0
    sizes: Sequence[tuple[int, int]] = ()
    opened: OpenUpload | None = field(init=False, default=None)

    encoding_bytes: ClassVar[int] = 0
    """Bytes that encoding takes beside the response, for each value of the largest image; of models
    that take any size.
    """

    def __post_init__(self) -> None:
        source = self.source
        if not isinstance(source, Upload) or not (self.is_tiled or source.must_open):
            self._make_plan()

    def open(self) -> Plan:
        """Read the headers of the uploaded images, and plan the request."""
        assert isinstance(self.source, Upload)  # noqa: S101 - nothing else is planned late
        self.opened = open_upload(self.api, self.source, self.model.card)
        images = self.opened.images
        self.labels = [{"index": index} for index in range(len(images))]
        if self.is_tiled:
            self.sizes = [image.size for image in images]
        return self._make_plan()

    def _make_plan(self) -> Plan:
        options = self.options
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
        self.plan = Plan(rows=rows, bytes=held)
        return self.plan

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
        if options.has_layout or self.is_tiled or len(self.labels) > 1:
            self._check_size(is_sheet=media in RASTER and not self.is_animation)

    def _check_size(self, *, is_sheet: bool) -> None:
        """Raise for options that only a sheet has, for sides longer than the format allows, and for
        too many pixels.
        """
        options = self.options
        media = self.api.media
        settings = self.api.services.settings.for_images(self.model.card.tiles)
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
        if media in _TEXTS and not self.is_array:
            check_sides(options.format, width, height)
        elif not self.is_array:
            check_sides(RASTER[media] if is_sheet else ANIMATED[media], width, height)
        if options.has_layout or (self.is_tiled and is_sheet and len(self.labels) > 1):
            given = {"scale": options.scale > 1, "gap": options.gap, "columns": options.columns}
            name = next((name for name, is_given in given.items() if is_given), "image")
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
        shown = channels * sum(map(prod, self.shown_sizes))
        values = channels * sum(pixels)
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
                work._take(inputs)
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
        self._take(decode_large(self.api, source, opened, self.model.card))

    def _take(self, inputs: InputRows) -> None:
        self.inputs = inputs
        for label, inverted in zip(self.labels, inputs.inverted, strict=True):
            label["inverted"] = inverted

    def shown(self) -> Result:
        """The result as the caller is shown it, with its trajectory; called where `encode` runs."""
        result = self.result
        if self.strength != 1.0 or self.inputs.chroma:
            result = shown_result(result, self.inputs.rows, self.strength, self.inputs.chroma)
        return result

    @abstractmethod
    async def event(self, item: StepOutput | StreamProgress | Result) -> bytes:
        """The event of a stream for what the scheduler delivers; empty for none."""

    async def send_events(self, events: Events, send: Send) -> bytes:
        """Send the events of a request until its result; returns the last piece, to be sent once no
        row runs.

        A failure before the first event becomes an ordinary problem document with its own status. A
        later failure becomes the event `error`, because status 200 is sent already.
        """
        api = self.api
        first = await events.get()
        if isinstance(first, Exception):
            raise first
        api.deadline = api.stream_deadline
        headers = [*self.response_headers(), *_EVENTS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async with asyncio.timeout(api.deadline - api.services.clock()):
                await self._send_each(first, events, send)
        except TimeoutError:
            return _error_event(
                api, DeadlineExceeded("the stream took longer than IGN_STREAM_TIMEOUT_S allows")
            )
        except Exception as exc:
            return _error_event(api, exc)
        return b""

    async def _send_each(self, first: Event, events: Events, send: Send) -> None:
        item: Event | None = first
        while True:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Result):
                self.result = item
                count_rows([self])
            text = b": still here\n\n" if item is None else await self.event(item)
            if text:
                await send({"type": "http.response.body", "body": text, "more_body": True})
            if isinstance(item, Result):
                return
            try:
                async with asyncio.timeout(_KEEPALIVE_S):
                    item = await events.get()
            except TimeoutError:
                item = None

    def response_headers(self) -> RawHeaders:
        """Headers of every successful response, but its Server-Timing."""
        headers = Work.response_headers(self)  # `super` does not know a class with slots
        if (seed := self.members.get("seed")) is not None:
            headers.append((b"x-ign-seed", b"%d" % seed))
        return headers


def _check_pixels(field: str, what: str, pixels: int, setting: str, limit: int) -> None:
    if pixels > limit:
        message = f"the {what} would have {pixels} pixels; the limit, {setting}, is {limit}"
        raise InvalidContent.field(field, message, code="image_too_large")


def _error_event(api: ApiRequest, exc: Exception) -> bytes:
    error = api.describe(exc)
    forget_frames(exc)
    return event("error", problem_body(error, api.request_id, api.path))


def event(name: str, members: Json) -> bytes:
    """Encode one server-sent event with JSON data."""
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), compact_json(members))
