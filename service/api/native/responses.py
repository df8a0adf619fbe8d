"""Results to answers: JSON with base64 pictures, one raw picture, a contact sheet, an animation, or `.npy`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, cast

import numpy as np
from starlette.responses import Response

from service.api.http.negotiation import Media
from service.api.http.request_context import ApiRequest
from service.api.native.schemas import Format
from service.artifact.card import ModelCard
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Result, StepOutput
from service.images import (
    AnimationFormat,
    PictureFormat,
    Pixels,
    animate,
    check_sides,
    contact_sheet,
    encode,
    encode_base64,
    encode_npy,
    sheet_size,
    strip,
    to_uint8,
)
from service.models.repository import LoadedModel

RASTER: Final[Mapping[Media, PictureFormat]] = {Media.PNG: "png", Media.WEBP: "webp", Media.JPEG: "jpeg"}
_ANIMATED: Final[Mapping[Media, AnimationFormat]] = {Media.WEBP: "webp", Media.GIF: "gif", Media.APNG: "apng"}
_USUAL: Final = 99.0  # percentile up to which a picture counts as one of those the model knows
_INLINE: Final = 1 << 13  # values: fewer are encoded on the event loop, in less time than a thread takes to wake


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSpec:
    """What an answer is made of, beside its result.

    Args:
        model: who answered.
        media: the negotiated form.
        format: of base64 pictures.
        labels: members of each image that the result does not know: `index`, `inverted`, `t`, `row`, `col`.
        members: of a JSON answer, before its images: `seed` where one was used or could have been.
        columns: of the contact sheet; None for near-square.
        fps: > 0 makes WebP, GIF and APNG an animation.
        closed: the last picture is the first once more (a loop).
    """

    model: LoadedModel
    media: Media
    format: Format
    labels: Sequence[Mapping[str, Any]]
    members: Mapping[str, Any] = field(default_factory=dict)
    layout: Literal["sheet", "strip"] = "sheet"
    columns: int | None = None
    fps: int = 0
    closed: bool = False

    @property
    def rows(self) -> int:
        """How many rows it takes."""
        return len(self.labels) - self.closed


def check_form(shape: ResponseSpec, record: Sequence[int] = ()) -> None:
    """Refuse, before anything is computed, what the form of the answer cannot hold.

    Raises:
        InvalidContent: ``record`` with a raw answer, or a sheet larger than its format allows.
    """
    if record and shape.media not in (Media.JSON, Media.EVENTS):
        raise InvalidContent.field("record", f"only JSON and event streams carry a trajectory, not {shape.media}")
    if shape.media in RASTER and not _is_animation(shape):
        columns = len(shape.labels) if shape.layout == "strip" else shape.columns
        check_sides(RASTER[shape.media], *sheet_size(len(shape.labels), shape.model.card, columns=columns))


async def answer(exchange: ApiRequest, shape: ResponseSpec, result: Result) -> Response:
    """The response to a finished request."""
    exchange.count_rows(shape.model, result)
    if shape.media is Media.JSON:
        large = _is_large(result.rows) or any(result.trajectory)
        pictures = await exchange.encode(lambda: _json(_images(shape, result)), large=large)
        # Put together as text: the timing stands around megabytes that are better written aside.
        before, mark, after = _json(envelope(exchange, shape.model, [], shape.members)).partition(b'"images":[')
        content = before + mark[:-1] + pictures + after[1:]
        return Response(
            content, headers=exchange.response_headers(shape.model, shape.members.get("seed")), media_type=Media.JSON
        )
    content = await exchange.encode(lambda: _raw(shape, result), large=_is_large(result.rows))
    headers = exchange.response_headers(shape.model, shape.members.get("seed")) | _row_headers(result)
    return Response(content, headers=headers, media_type=shape.media)


def scores(exchange: ApiRequest, model: LoadedModel, result: Result) -> Response:
    """The response of `/score`: numbers, no pictures."""
    exchange.count_rows(model, result)
    drifts = [] if result.drift is None else result.drift.tolist()
    images: list[dict[str, Any]] = []
    for index, (distance, drift) in enumerate(zip(result.distance.tolist(), drifts, strict=True)):
        measured = {"index": index, "distance": rounded(distance), "drift": rounded(drift)}
        images.append(measured | judged(model.card, distance))
    content = _json(envelope(exchange, model, images))
    return Response(content, headers=exchange.response_headers(model, None), media_type=Media.JSON)


def judged(card: ModelCard, distance: float) -> dict[str, Any]:
    """Where a distance lies among those of real pictures, and whether it is one of the usual; None where unknown."""
    percentile = card.percentile(distance)
    return {
        "percentile": None if percentile is None else rounded(percentile),
        "in_distribution": None if percentile is None else percentile <= _USUAL,
    }


def envelope(
    exchange: ApiRequest,
    model: LoadedModel,
    images: list[dict[str, Any]],
    members: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The JSON answer around its images; ``members`` come before those."""
    card = model.card
    reference = {"name": card.name, "version": card.version, "digest": f"sha256:{model.digest}"}
    head: dict[str, Any] = {"model": reference, "request_id": exchange.request_id, **members}
    return head | {"images": images, "timing": exchange.timing()}


def image(shape: ResponseSpec, result: Result, place: int, data: str | None) -> dict[str, Any]:
    """One member of `images`, without its trajectory.

    Args:
        shape: of the answer.
        result: the finished request.
        place: which row.
        data: its picture in base64, or None where it was sent already.
    """
    _, height, width = shape.model.card.shape
    return {
        **shape.labels[place],
        "data": data,
        "format": shape.format,
        "width": width,
        "height": height,
        "steps": int(result.steps[place]),
        "converged": bool(result.converged[place]),
        "distance": rounded(result.distance[place]),
        "drift": None if result.drift is None else rounded(result.drift[place]),
        "trajectory": None,
    }


def picture(row: FloatRow, card: ModelCard, form: Format) -> str:
    """One row (C, H, W) as a base64 picture."""
    if form == "npy":
        return encode_base64(encode_npy(row))
    return encode_base64(encode(to_uint8(row, card), form))


def rounded(value: float) -> float:
    """A row metric as answers show it."""
    return round(float(value), 6)


def _images(shape: ResponseSpec, result: Result) -> list[dict[str, Any]]:
    card, form = shape.model.card, shape.format
    if form == "npy":
        data = [picture(row, card, form) for row in result.rows]
    else:
        data = [encode_base64(encode(pixels, form)) for pixels in to_uint8(result.rows, card)]
    images = [image(shape, result, place, text) for place, text in enumerate(data)]
    for place, steps in enumerate(result.trajectory):
        if steps:
            images[place]["trajectory"] = [_recorded(step, card, form) for step in steps]
    return images


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _recorded(step: StepOutput, card: ModelCard, form: Format) -> dict[str, Any]:
    change = None if step.change is None else rounded(step.change)
    return {"step": step.step, "data": picture(step.row, card, form), "change": change}


def _raw(shape: ResponseSpec, result: Result) -> bytes:
    if shape.media is Media.NPY:
        return encode_npy(result.rows)
    pixels = to_uint8(result.rows, shape.model.card)
    if _is_animation(shape):
        return animate(pixels, _ANIMATED[shape.media], fps=shape.fps)
    return encode(_sheet(shape, pixels), RASTER[shape.media])


def _sheet(shape: ResponseSpec, pixels: Pixels) -> Pixels:
    if len(pixels) == 1:
        return cast(Pixels, pixels[0])
    if shape.layout == "strip":
        return strip(pixels, shape.model.card)
    return contact_sheet(pixels, shape.model.card, columns=shape.columns)


def _row_headers(result: Result) -> dict[str, str]:
    headers = {
        "X-IGN-Steps": ",".join(map(str, result.steps.tolist())),
        "X-IGN-Distance": ",".join(str(rounded(value)) for value in result.distance.tolist()),
    }
    if result.drift is not None:
        headers["X-IGN-Drift"] = ",".join(str(rounded(value)) for value in result.drift.tolist())
    return headers


def _is_animation(shape: ResponseSpec) -> bool:
    return shape.fps > 0 and shape.media in _ANIMATED


def _is_large(rows: FloatRows) -> bool:
    return bool(np.size(rows) > _INLINE)
