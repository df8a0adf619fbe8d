"""Build responses from results: JSON with base64 images, a raw image, a contact sheet, an
animation, or `.npy`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby, islice
from typing import Final, Self

import numpy as np

from service.api.message import compact_json
from service.api.native.rows import ANIMATED, INLINE_VALUES, RASTER, RowWork, event
from service.api.native.schemas import ImageOptions
from service.api.negotiation import Json, Media
from service.api.pipeline import count_codec
from service.api.request import RawHeaders
from service.artifact.card import Card
from service.domain.latents import FloatRow
from service.domain.tasks import Result, StepOutput, StreamProgress, shown_step
from service.images.decode import Pixels
from service.images.encode import (
    animate,
    contact_sheet,
    encode,
    encode_base64,
    encode_many,
    encode_npy,
    encode_tiff,
    enlarge,
    to_uint8,
)

METRIC_DECIMALS: Final = 6  # of distance, drift and change in answers


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
        """Encode images, those of plain PNGs of one size together."""
        results = {work: work.shown() for work in works}
        files: dict[Self, list[bytes]] = {}
        plain = filter(_is_plain_png, works)
        for _, some in groupby(plain, lambda work: results[work].rows[0].shape):
            rows = {work: results[work].rows for work in some}
            levels = to_uint8(np.concatenate([*rows.values()]), works[0].model.card)
            pngs = iter(encode_many(levels, "png"))
            files |= {work: list(islice(pngs, len(own))) for work, own in rows.items()}
        for work, result in results.items():
            work.media_type = work.api.media
            if work.media_type is Media.JSON:
                work.content = _json_pieces(_images(work, result, files.get(work)))
            else:
                work.content = files.get(work) or [_raw(work, result)]
                work.headers = row_headers(result)

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
            return event("progress", asdict(item))
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


def _is_plain_png(work: NativeWork) -> bool:
    """Whether its images are PNGs that can be encoded together with those of others."""
    options = work.options
    media = work.api.media
    if options.scale > 1 or work.is_tiled or work.inputs.chroma:
        return False
    return (media is Media.JSON and options.format == "png") or (
        media is Media.PNG and len(work.labels) == 1
    )


def _image(work: RowWork, result: Result, index: int, data: str | None) -> Json:
    """One member of `images`, without its trajectory; ``data`` is None in a stream, which has sent
    it already.
    """
    height, width = result.rows[index].shape[-2:]
    return {
        **work.labels[index],
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


def round_metric(value: float) -> float:
    """A distance, drift or change as responses show it: rounded to 6 decimals."""
    return round(float(value), METRIC_DECIMALS)


def _images(work: RowWork, result: Result, pngs: Sequence[bytes] | None) -> list[Json]:
    def encoded(row: FloatRow) -> str:
        work.api.check_not_over()
        return picture(row, work.model.card, work.options)

    data = map(encoded, result.rows) if pngs is None else map(encode_base64, pngs)
    images = [_image(work, result, index, text) for index, text in enumerate(data)]
    for index, steps in enumerate(result.trajectory):
        if steps:
            images[index]["trajectory"] = [
                {"step": step.step, "data": encoded(step.row), "change": round_change(step)}
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
        "change": round_change(step),
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


def round_change(step: StepOutput) -> float | None:
    """The change of a recorded step as responses show it; None for the input."""
    return None if step.change is None else round_metric(step.change)


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
    headers = [(b"x-ign-steps", ",".join(map(str, result.steps.tolist())).encode("ascii"))]
    for name, values in ((b"x-ign-distance", result.distance), (b"x-ign-drift", result.drift)):
        if values is not None:
            text = ",".join([str(round(value, METRIC_DECIMALS)) for value in values.tolist()])
            headers.append((name, text.encode("ascii")))
    return headers
