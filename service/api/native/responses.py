"""Build responses from results: JSON with base64 images, a raw image, a contact sheet, an
animation, or `.npy`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.api.native.schemas import ImageOptions
from service.api.negotiation import Json, Media
from service.api.request import ApiRequest, RawHeaders, ResponseParts
from service.artifact.card import Card
from service.artifact.pixels import to_levels
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow
from service.domain.tasks import Images, Result, StepOutput
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
from service.models.registry import ServedModel

RASTER: Final[Mapping[Media, ImageFormat]] = {
    Media.PNG: "png",
    Media.WEBP: "webp",
    Media.JPEG: "jpeg",
}
_ANIMATED: Final[Mapping[Media, AnimationFormat]] = {
    Media.WEBP: "webp",
    Media.GIF: "gif",
    Media.APNG: "apng",
}
METRIC_DECIMALS: Final = 6  # of distance, drift and change in answers
# highest percentile, among the distances of real images, that counts as real
_IN_DISTRIBUTION: Final = 99.0
# white of a heat map, in units of the distance of `_IN_DISTRIBUTION`: few pixels change most
_WHITE: Final = 8
# values; encoding so few takes less time than waking a thread of the codec pool
INLINE_VALUES: Final = 1 << 13
_FLOAT_BYTES: Final = 4
_CHANGE_BYTES: Final = 12  # of one value: a float32 change, and a float64 sum of changes
_LINES: Final = 64
_PIECE: Final = 1 << 18  # bytes of JSON that are made in one call, or sent at a time
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


@dataclass(slots=True, kw_only=True, eq=False)
class ResponseSpec:
    """A request, and how its result becomes a response.

    ``labels`` has for each image the members that are not in the result: `index`, `inverted`, `t`,
    `row`, `col`. ``members`` precede `images` in the JSON body. A sheet has ``columns``, or
    ceil(√N) for None. With ``fps`` above 0, WebP, GIF and APNG are animations; if ``closed``, they
    repeat the first image at the end. ``strength`` is the s of (1−s)·x + s·f^k(x), 0…1. ``sizes``
    are those of the images, (H, W), if they have any size (``is_tiled``); those of an upload come
    with its headers. ``shows_change``: the response says where f changes an image. Decoding adds
    the ``chroma`` that images get back.
    """

    api: ApiRequest
    model: ServedModel
    options: ImageOptions
    labels: Sequence[Json]
    members: Mapping[str, Any] = field(default_factory=dict)
    columns: int | None = None
    fps: int = 0
    closed: bool = False
    strength: float = 1.0
    sizes: Sequence[tuple[int, int]] = ()
    is_tiled: bool = False
    shows_change: bool = False
    chroma: list[FloatRow | None] = field(default_factory=list)
    media: Media = field(init=False)

    @property
    def cell(self) -> tuple[int, int]:
        """(H, W) of the images, or of the largest sides that they have."""
        if not self.sizes:
            return self.model.card.shape[1:]
        return max(height for height, _ in self.sizes), max(width for _, width in self.sizes)

    @property
    def values(self) -> int:
        """Numbers in all images, before they are enlarged."""
        card = self.model.card
        channels, height, width = card.shape if card.color is None else card.coloured.shape
        pixels = (
            sum(h * w for h, w in self.sizes) if self.sizes else len(self.labels) * height * width
        )
        return channels * pixels

    @property
    def largest_values(self) -> int:
        """Numbers in the largest of images of any size."""
        card = self.model.card
        channels = card.shape[0] if card.color is None else 3
        return channels * max(height * width for height, width in self.sizes)

    @property
    def is_animation(self) -> bool:
        """Whether the body is an animation."""
        return self.fps > 0 and self.media in _ANIMATED


def check_format(spec: ResponseSpec, record: Sequence[int] = ()) -> None:
    """Raise, before the model runs, if the format cannot hold the response."""
    options = spec.options
    if record and spec.media not in (Media.JSON, Media.EVENTS):
        raise InvalidContent.field(
            "record", f"only JSON and event streams carry a trajectory, not {spec.media}"
        )
    if spec.media is Media.NPY and len(set(spec.sizes)) > 1:
        raise InvalidContent.field(
            "image", "one .npy array holds images of one size; ask for JSON with format npy"
        )
    if options.has_layout or (len(spec.sizes) > 1 and spec.media in RASTER):
        _check_layout(spec, len(record))
    elif len(spec.labels) > 1 and spec.media in RASTER and not spec.is_animation:
        check_sides(
            RASTER[spec.media], *sheet_size(len(spec.labels), spec.cell, columns=spec.columns)
        )
    if spec.sizes:
        _check_sizes(spec, len(record))


def _check_sizes(spec: ResponseSpec, recorded: int) -> None:
    """Check the sizes of images of a model that takes any."""
    height, width = spec.cell
    if spec.media in RASTER or (
        spec.media in (Media.JSON, Media.EVENTS) and spec.options.format != "npy"
    ):
        check_sides(RASTER.get(spec.media, spec.options.format), width, height)
    pixels = (1 + recorded) * sum(h * w for h, w in spec.sizes)
    limit = spec.api.services.settings.max_request_pixels
    if recorded and pixels > limit:
        message = (
            f"the trajectory would have {pixels} pixels; the limit, "
            f"IGN_MAX_REQUEST_PIXELS, is {limit}"
        )
        raise InvalidContent.field("record", message, code="image_too_large")


def _check_layout(spec: ResponseSpec, recorded: int) -> None:
    """Check the size of a response that is not laid out by default."""
    options = spec.options
    media = spec.media
    count = len(spec.labels)
    is_raw = media not in (Media.JSON, Media.EVENTS)
    if options.scale > 1 and (
        media in (Media.NPY, Media.TIFF) or (not is_raw and options.format == "npy")
    ):
        raise InvalidContent.field(
            "scale", "only images of 8 bits are enlarged, not arrays and TIFF"
        )
    is_sheet = media in RASTER and not spec.is_animation
    for name, is_given in (("columns", options.columns is not None), ("gap", options.gap > 0)):
        if is_given and not is_sheet:
            shown = "an animation" if spec.is_animation else media
            raise InvalidContent.field(
                name, f"only a sheet as PNG, WebP or JPEG has {name}, not {shown}"
            )
    height, width = (side * options.scale for side in spec.cell)
    if is_sheet:
        columns = options.columns or spec.columns
        width, height = sheet_size(count, (height, width), columns=columns, gap=options.gap)
        count = 1
    if is_raw:
        check_sides(_ANIMATED[media] if spec.is_animation else RASTER[media], width, height)
    settings = spec.api.services.settings.for_images(spec.model.card.tiles)
    pixels = count * (1 + recorded) * width * height
    limit = settings.max_pixels
    if pixels > limit:
        field = (
            "scale"
            if options.scale > 1
            else "gap"
            if options.gap
            else "columns"
            if options.columns
            else "image"
        )
        message = f"the response would have {pixels} pixels; the limit, IGN_MAX_PIXELS, is {limit}"
        raise InvalidContent.field(field, message, code="image_too_large")


def response_bytes(spec: ResponseSpec, values: int, recorded: int, *, is_repeated: bool) -> int:
    """What a response and the arrays that it is made from take, at most.

    ``values`` are `ResponseSpec.values`, and ``recorded`` the number of recorded steps of one row;
    ``is_repeated``, whether f is applied to its result again.
    """
    options = spec.options
    is_stream = spec.media is Media.EVENTS
    is_array = spec.media in (Media.NPY, Media.TIFF) or (
        options.format == "npy" and (is_stream or spec.media is Media.JSON)
    )
    encoded = values * (_FLOAT_BYTES if is_array else options.scale**2)
    # Input, result and recorded steps; chroma is kept, and blending makes a new result.
    arrays = 2 + recorded + bool(spec.model.card.color) + (spec.strength != 1.0)
    sent = 1 + recorded
    if is_stream:  # it sends its images one by one
        sent = 1
        encoded = encoded // len(spec.labels)
    held = arrays * values * _FLOAT_BYTES + sent * (
        encoded * 4 // 3 if spec.media is Media.JSON else encoded
    )
    if spec.is_tiled:
        # Of one image at a time: its levels, the result of a further pass, and what finds where f
        # changes it most.
        held += spec.largest_values * (
            1 + _FLOAT_BYTES * is_repeated + _CHANGE_BYTES * spec.shows_change
        )
    return held


def encode_contents(ended: Sequence[tuple[ResponseSpec, Result]]) -> list[list[bytes]]:
    """The body of each response in pieces, or its images as JSON. PNGs of one model are encoded
    together.
    """
    together: dict[ServedModel, list[int]] = {}
    for index, (spec, result) in enumerate(ended):
        is_json = spec.media is Media.JSON
        is_png = (
            spec.options.format == "png"
            if is_json
            else spec.media is Media.PNG and len(result.rows) == 1
        )
        if is_png and spec.options.scale == 1 and not (spec.sizes or spec.chroma):
            together.setdefault(spec.model, []).append(index)
    files: dict[int, list[bytes]] = {}
    for model, indices in together.items():
        rows = [np.asarray(ended[index][1].rows) for index in indices]
        pngs = iter(
            encode_many(
                to_uint8(rows[0] if len(rows) == 1 else np.concatenate(rows), model.card), "png"
            )
        )
        files |= {
            index: list(islice(pngs, len(each))) for index, each in zip(indices, rows, strict=True)
        }
    return [
        _json_pieces(_images(spec, result, files.get(index)))
        if spec.media is Media.JSON
        else [files[index][0] if index in files else _raw(spec, result)]
        for index, (spec, result) in enumerate(ended)
    ]


def response_parts(spec: ResponseSpec, result: Result, content: list[bytes]) -> ResponseParts:
    """Headers, pieces of the body and media type of a response whose ``content`` comes from
    `encode_contents`.
    """
    headers = spec.api.response_headers(spec.model, spec.members.get("seed"))
    if spec.media is not Media.JSON:
        return headers + _row_headers(result), content, spec.media
    # `timing` includes the time of encoding the images, so the rest of the body is written after
    # them, and the encoded images are inserted as text.
    before, marker, after = _json(envelope(spec, [])).partition(b'"images":[')
    return headers, [before + marker[:-1], *content, after[1:]], spec.media


def score_content(spec: ResponseSpec, rows: Images, result: Result) -> Any:
    """The body of a score as an image, the heat map of |f(x) − x|; as JSON, the box of each image
    that changes most.
    """
    # One at a time: all together would take as much memory as the images.
    changes = (_change(made, given) for made, given in zip(result.rows, rows, strict=True))
    card = spec.model.card
    if spec.media is Media.JSON:
        return [worst_box(change) for change in changes]
    lo, hi = card.range
    limit = (
        (hi - lo) / 16
        if card.distance_quantiles is None
        else card.percentile_distance(_IN_DISTRIBUTION)
    )
    heat = [to_levels(change, 0.0, _WHITE * max(limit, 1e-6)) for change in changes]
    if card.shape[0] > 1:
        heat = [np.repeat(each[..., None], card.shape[0], axis=-1) for each in heat]
    return [
        encode(
            contact_sheet(heat, card) if len(heat) > 1 else heat[0],
            RASTER[spec.media],
        )
    ]


def _change(made: FloatRow, given: FloatRow) -> NDArray[np.float32]:
    """|f(x) − x| of one image (C, H, W), as the mean (H, W) of its channels."""
    difference = made - given
    return np.asarray(np.abs(difference, out=difference).mean(axis=0))


def worst_box(change: NDArray[np.float32]) -> Json:
    """The square with the largest mean of ``change`` (H, W); its side is a quarter of the shorter
    one of the image.
    """
    height, width = change.shape
    side = max(1, min(height, width) // 4)
    sums = np.zeros((height + 1, width + 1))
    change.cumsum(axis=0, dtype=np.float64, out=sums[1:, 1:])
    # Some lines at a time: one image can have 40 megapixels.
    for top in range(0, height + 1, _LINES):
        sums[top : top + _LINES].cumsum(axis=1, out=sums[top : top + _LINES])
    worst = -1.0
    place = (0, 0)
    for top in range(0, height - side + 1, _LINES):
        above = sums[top : min(top + _LINES, height - side + 1)]
        below = sums[top + side : top + side + len(above)]
        windows = below[:, side:] - above[:, side:] - below[:, :-side] + above[:, :-side]
        y, x = divmod(int(windows.argmax()), windows.shape[1])
        if windows[y, x] > worst:
            worst = float(windows[y, x])
            place = (top + y, x)
    y, x = place
    return {
        "x": x,
        "y": y,
        "width": side,
        "height": side,
        "distance": round_metric(worst / side**2),
    }


def score_response(spec: ResponseSpec, result: Result, content: Any) -> ResponseParts:
    """The response of `/score`, whose ``content`` comes from `score_content`."""
    headers = spec.api.response_headers(spec.model)
    if spec.media is not Media.JSON:
        return headers + _row_headers(result), content, spec.media
    drifts = [] if result.drift is None else result.drift.tolist()
    images: list[Json] = []
    for index, (distance, drift, box) in enumerate(
        zip(result.distance.tolist(), drifts, content, strict=True)
    ):
        measured = {
            "index": index,
            "distance": round_metric(distance),
            "drift": round_metric(drift),
            "worst": box,
        }
        images.append(measured | in_distribution_fields(spec.model.card, distance))
    return headers, [_json(envelope(spec, images))], Media.JSON


def in_distribution_fields(card: Card, distance: float) -> Json:
    """The percentile of a distance among those of real images, and whether it is at most 99; None
    if unknown.
    """
    percentile = card.percentile(distance)
    return {
        "percentile": None if percentile is None else round_metric(percentile),
        "in_distribution": None if percentile is None else percentile <= _IN_DISTRIBUTION,
    }


def envelope(spec: ResponseSpec, images: list[Json]) -> Json:
    """The JSON body with its images."""
    card = spec.model.card
    api = spec.api
    model_ref = {
        "name": card.name,
        "version": card.version,
        "digest": f"sha256:{spec.model.digest}",
    }
    head: Json = {"model": model_ref, "request_id": api.request_id, **spec.members}
    return head | {"images": images, "timing": api.timing()}


def image(spec: ResponseSpec, result: Result, index: int, data: str | None) -> Json:
    """One member of `images`, without its trajectory; ``data`` is None in a stream, which has sent
    it already.
    """
    height, width = spec.sizes[index] if spec.sizes else spec.model.card.shape[1:]
    return {
        **spec.labels[index],
        "data": data,
        "format": spec.options.format,
        "width": width * spec.options.scale,
        "height": height * spec.options.scale,
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


def round_metric(value: float) -> float:
    """A distance, drift or change as responses show it: rounded to 6 decimals."""
    return round(float(value), METRIC_DECIMALS)


def _images(spec: ResponseSpec, result: Result, pngs: Sequence[bytes] | None) -> list[Json]:
    def encoded(row: FloatRow) -> str:
        spec.api.check_not_over()
        return picture(row, spec.model.card, spec.options)

    data = map(encoded, result.rows) if pngs is None else map(encode_base64, pngs)
    images = [image(spec, result, index, text) for index, text in enumerate(data)]
    for index, steps in enumerate(result.trajectory):
        if steps:
            images[index]["trajectory"] = [
                {"step": step.step, "data": encoded(step.row), "change": round_change(step)}
                for step in steps
            ]
    return images


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _json_pieces(images: list[Json]) -> list[bytes]:
    """The JSON of the images in one piece, or in several if it is long.

    One call of `json` holds the interpreter lock until it ends: for 60 MB, the event loop would
    wait half a second.
    """
    if (
        sum(len(each["data"]) for image in images for each in (image, *(image["trajectory"] or ())))
        <= _PIECE
    ):
        return [_json(images)]
    pieces: list[bytes] = []
    texts: list[str] = []
    size = 0
    for text in _ENCODER.iterencode(images):
        texts.append(text)
        size += len(text)
        if size >= _PIECE:
            pieces.append("".join(texts).encode("ascii"))
            texts = []
            size = 0
    return [*pieces, "".join(texts).encode("ascii")]


def round_change(step: StepOutput) -> float | None:
    """The change of a recorded step as responses show it; None for the input."""
    return None if step.change is None else round_metric(step.change)


def _raw(spec: ResponseSpec, result: Result) -> bytes:
    rows = result.rows
    options = spec.options
    card = spec.model.card
    if isinstance(rows, list):  # beside a colour image, grey ones are in colour, too
        channels = max(map(len, rows))
        rows = [np.broadcast_to(row, (channels, *row.shape[1:])) for row in rows]
    if spec.media is Media.NPY:
        return encode_npy(np.asarray(rows))
    if spec.media is Media.TIFF:
        return encode_tiff(rows, card)
    if spec.is_animation:
        make = partial(
            animate, scale=options.scale, resample=options.resample, check=spec.api.check_not_over
        )
        return make(to_uint8(np.asarray(rows), card), _ANIMATED[spec.media], fps=spec.fps)
    images = list[Pixels]()
    for pixels in (
        to_uint8(rows, card)
        if isinstance(rows, np.ndarray)
        else (to_uint8(row, card) for row in rows)
    ):
        spec.api.check_not_over()
        images.append(enlarge(pixels, options.scale, options.resample))
    if len(images) == 1:
        return encode(images[0], RASTER[spec.media])
    sheet = contact_sheet(images, card, columns=options.columns or spec.columns, gap=options.gap)
    return encode(sheet, RASTER[spec.media])


def _row_headers(result: Result) -> RawHeaders:
    headers = [(b"x-ign-steps", ",".join(map(str, result.steps.tolist())).encode("ascii"))]
    for name, values in ((b"x-ign-distance", result.distance), (b"x-ign-drift", result.drift)):
        if values is not None:
            text = ",".join([str(round(value, METRIC_DECIMALS)) for value in values.tolist()])
            headers.append((name, text.encode("ascii")))
    return headers
