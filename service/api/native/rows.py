"""The work of the endpoints that return images or scores: what it takes, and how its images are
decoded.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from service.api.native.schemas import ImageOptions
from service.api.native.stream import StreamedWork
from service.api.native.uploads import (
    OpenUpload,
    Upload,
    decode_large,
    decode_small,
    open_upload,
)
from service.api.negotiation import Json, Media
from service.api.pipeline import InputRows, Plan, Work, count_codec
from service.api.request import RawHeaders
from service.domain.errors import InvalidContent
from service.domain.tasks import Result, shown_result
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
_CHANGE_BYTES: Final = 12  # of one value: a float32 change, and a float64 sum of changes


_TEXTS: Final = (Media.JSON, Media.EVENTS)  # their images are base64


@dataclass(slots=True, kw_only=True, eq=False)
class RowWork(StreamedWork):
    """A request whose response shows its rows as images, or measures them.

    ``source`` is the upload, or makes the rows: in a thread of the codec pool, if ``is_large``.
    ``labels`` has for each image the members that are not in the result: `index`, `inverted`, `t`,
    `row`, `col`. ``members`` precede `images` in the JSON body. A sheet has ``columns``, or
    ceil(√N) for None. With ``fps`` above 0, WebP, GIF and APNG are animations. ``strength`` is the
    s of (1−s)·x + s·f^k(x), 0…1. ``sizes`` are those of the images, (H, W); the headers of an
    upload tell them, if the model takes any size (``is_tiled``). ``shows_change``: the response
    says where f changes an image.
    """

    options: ImageOptions
    source: Upload | Callable[[], InputRows]
    labels: Sequence[Json]
    members: Mapping[str, Any] = field(default_factory=dict)
    columns: int | None = None
    fps: int = 0
    strength: float = 1.0
    sizes: Sequence[tuple[int, int]] = ()
    shows_change: bool = False
    opened: OpenUpload | None = field(init=False, default=None)

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
        is_slow = options.gap > 0 or (self.fps and self.is_animation)
        is_large = values * options.scale**2 > INLINE_VALUES
        self.has_large_response = bool(is_large or self.params.record or is_slow or self.is_tiled)
        rows = len(self.labels)
        if self.is_tiled:
            rows, tile_bytes = self.model.plan_tiles(self.sizes)
            held += tile_bytes
        self.plan = Plan(rows=rows, bytes=held)
        return self.plan

    @property
    def is_animation(self) -> bool:
        """Whether the body is an animation."""
        return self.fps > 0 and self.api.media in ANIMATED

    @property
    def is_array(self) -> bool:
        """Whether the images are arrays of numbers, or TIFF, which holds such."""
        media = self.api.media
        is_text = media in _TEXTS
        return self.options.format == "npy" if is_text else media in (Media.NPY, Media.TIFF)

    def _check_format(self) -> None:
        """Raise, before the model runs, if the format cannot hold the response."""
        media = self.api.media
        options = self.options
        has_layout = options.has_layout
        if self.params.record and media not in _TEXTS:
            raise InvalidContent.field(
                "record", f"only JSON and event streams carry a trajectory, not {media}"
            )
        if media is Media.NPY and len(set(self.sizes)) > 1:
            raise InvalidContent.field(
                "image", "one .npy array holds images of one size; ask for JSON with format npy"
            )
        if options.scale > 1 and self.is_array:
            raise InvalidContent.field(
                "scale", "only images of 8 bits are enlarged, not arrays and TIFF"
            )
        if has_layout or self.is_tiled or len(self.labels) > 1:
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
        height, width = (options.scale * max(sides) for sides in zip(*self.sizes, strict=True))
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
            pixels = (1 + recorded) * sum(h * w for h, w in self.sizes)
            limit = settings.max_request_pixels
            _check_pixels("record", "trajectory", pixels, "four times IGN_MAX_PIXELS", limit)

    def _held(self) -> tuple[int, int]:
        """Bytes of the response and of the arrays that it is made from, at most; and the numbers in
        its images, before they are enlarged.
        """
        card = self.model.card
        media = self.api.media
        recorded = len(self.params.record)
        channels = (card if card.color is None else card.coloured).shape[0]
        pixels = [height * width for height, width in self.sizes]
        values = channels * sum(pixels)
        encoded = values * (_FLOAT_BYTES if self.is_array else self.options.scale**2)
        # Input, result and recorded steps; chroma is kept, and blending makes a new result.
        arrays = 2 + recorded + bool(card.color) + (self.strength != 1.0)
        if media is Media.JSON:
            encoded = encoded * 4 // 3
        if media is Media.EVENTS:  # it sends its images one by one
            encoded = encoded // len(self.labels)
        else:
            encoded *= 1 + recorded
        held = arrays * values * _FLOAT_BYTES + encoded
        if self.is_tiled:
            # Of one image at a time: its levels, the result of a further pass, and what finds where
            # f changes it most.
            is_repeated = self.params.steps > 1 or self.params.score
            each = 1 + _FLOAT_BYTES * is_repeated + _CHANGE_BYTES * self.shows_change
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
        """The result as the caller is shown it."""
        result = self.result
        if self.strength != 1.0 or self.inputs.chroma:
            result = shown_result(result, self.inputs.rows, self.strength, self.inputs.chroma)
        return result

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
