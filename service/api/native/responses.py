"""Answers from results: JSON with base64 pictures, one raw picture, a contact sheet, an animation, or `.npy`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

from starlette.responses import Response

from service.api.http.negotiation import Media
from service.api.http.request_context import ApiRequest
from service.api.native.schemas import Format
from service.artifact.card import ModelCard
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow
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
from service.models.registry import ServedModel

RASTER: Final[Mapping[Media, PictureFormat]] = {Media.PNG: "png", Media.WEBP: "webp", Media.JPEG: "jpeg"}
_ANIMATED: Final[Mapping[Media, AnimationFormat]] = {Media.WEBP: "webp", Media.GIF: "gif", Media.APNG: "apng"}
_IN_DISTRIBUTION: Final = 99.0  # highest percentile of the distances of real pictures that counts as real
_INLINE: Final = 1 << 13  # values; up to so many are encoded on the event loop, faster than a thread wakes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSpec:
    """How a result becomes an answer.

    Args:
        model: the model that answers.
        media: the negotiated media type.
        format: of base64 pictures.
        labels: for each image, the members that the result does not hold: `index`, `inverted`, `t`, `row`, `col`.
        members: members of a JSON answer before its images: `seed`, if the endpoint has one.
        layout: several pictures in one: a contact sheet, or a strip of one row.
        columns: of the contact sheet; None for near-square.
        fps: frames a second; above 0, WebP, GIF and APNG are animations.
        closed: the last picture repeats the first one (a loop).
        strength: s of (1−s)·x + s·f^k(x), 0…1.
    """

    model: ServedModel
    media: Media
    format: Format
    labels: Sequence[Mapping[str, Any]]
    members: Mapping[str, Any] = field(default_factory=dict)
    layout: Literal["sheet", "strip"] = "sheet"
    columns: int | None = None
    fps: int = 0
    closed: bool = False
    strength: float = 1.0

    @property
    def rows(self) -> int:
        """Rows that the model runs; the repeated one of a loop is not among them."""
        return len(self.labels) - self.closed


def check_format(spec: ResponseSpec, record: Sequence[int] = ()) -> None:
    """Reject, before anything is computed, what the answer's format cannot hold.

    Raises:
        InvalidContent: ``record`` with a raw answer, or a sheet larger than its format allows.
    """
    if record and spec.media not in (Media.JSON, Media.EVENTS):
        raise InvalidContent.field("record", f"only JSON and event streams carry a trajectory, not {spec.media}")
    if len(spec.labels) > 1 and spec.media in RASTER and not _is_animation(spec):
        columns = len(spec.labels) if spec.layout == "strip" else spec.columns
        check_sides(RASTER[spec.media], *sheet_size(len(spec.labels), spec.model.card, columns=columns))


async def respond(api: ApiRequest, spec: ResponseSpec, result: Result) -> Response:
    """The response to a finished request."""
    api.count_rows(spec.model, result)
    if spec.media is Media.JSON:
        large = result.rows.size > _INLINE or any(result.trajectory)
        pictures = await api.run_codec("encode", lambda: _json(_images(spec, result)), large=large)
        # Joined as text: the pool encodes the images, and the timing, which includes that, comes after them.
        before, mark, after = _json(envelope(api, spec.model, [], spec.members)).partition(b'"images":[')
        content = before + mark[:-1] + pictures + after[1:]
        return Response(
            content, headers=api.response_headers(spec.model, spec.members.get("seed")), media_type=Media.JSON
        )
    content = await api.run_codec("encode", partial(_raw, spec, result), large=result.rows.size > _INLINE)
    headers = api.response_headers(spec.model, spec.members.get("seed")) | _row_headers(result)
    return Response(content, headers=headers, media_type=spec.media)


def respond_scores(api: ApiRequest, model: ServedModel, result: Result) -> Response:
    """The response of `/score`: numbers, no pictures."""
    api.count_rows(model, result)
    drifts = [] if result.drift is None else result.drift.tolist()
    images: list[dict[str, Any]] = []
    for index, (distance, drift) in enumerate(zip(result.distance.tolist(), drifts, strict=True)):
        measured = {"index": index, "distance": round_metric(distance), "drift": round_metric(drift)}
        images.append(measured | in_distribution_fields(model.card, distance))
    content = _json(envelope(api, model, images))
    return Response(content, headers=api.response_headers(model), media_type=Media.JSON)


def in_distribution_fields(card: ModelCard, distance: float) -> dict[str, Any]:
    """The percentile of a distance among those of real pictures, and whether it is usual; None where unknown."""
    percentile = card.percentile(distance)
    return {
        "percentile": None if percentile is None else round_metric(percentile),
        "in_distribution": None if percentile is None else percentile <= _IN_DISTRIBUTION,
    }


def envelope(
    api: ApiRequest,
    model: ServedModel,
    images: list[dict[str, Any]],
    members: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The JSON answer around its images; ``members`` come before those."""
    card = model.card
    reference = {"name": card.name, "version": card.version, "digest": f"sha256:{model.digest}"}
    head: dict[str, Any] = {"model": reference, "request_id": api.request_id, **members}
    return head | {"images": images, "timing": api.timing()}


def image(spec: ResponseSpec, result: Result, place: int, data: str | None) -> dict[str, Any]:
    """One member of `images`, without its trajectory.

    Args:
        spec: of the answer.
        result: the finished request.
        place: which row.
        data: its picture in base64, or None where it was sent already.
    """
    _, height, width = spec.model.card.shape
    return {
        **spec.labels[place],
        "data": data,
        "format": spec.format,
        "width": width,
        "height": height,
        "steps": int(result.steps[place]),
        "converged": bool(result.converged[place]),
        "distance": round_metric(result.distance[place]),
        "drift": None if result.drift is None else round_metric(result.drift[place]),
        "trajectory": None,
    }


def picture(row: FloatRow, card: ModelCard, form: Format) -> str:
    """One row (C, H, W) as a base64 picture."""
    if form == "npy":
        return encode_base64(encode_npy(row))
    return encode_base64(encode(to_uint8(row, card), form))


def round_metric(value: float) -> float:
    """A row metric as answers show it."""
    return round(float(value), 6)


def _images(spec: ResponseSpec, result: Result) -> list[dict[str, Any]]:
    card, form = spec.model.card, spec.format
    if form == "npy":
        data = [picture(row, card, form) for row in result.rows]
    else:
        data = [encode_base64(encode(pixels, form)) for pixels in to_uint8(result.rows, card)]
    images = [image(spec, result, place, text) for place, text in enumerate(data)]
    for place, steps in enumerate(result.trajectory):
        if steps:
            images[place]["trajectory"] = [_recorded(step, card, form) for step in steps]
    return images


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _recorded(step: StepOutput, card: ModelCard, form: Format) -> dict[str, Any]:
    change = None if step.change is None else round_metric(step.change)
    return {"step": step.step, "data": picture(step.row, card, form), "change": change}


def _raw(spec: ResponseSpec, result: Result) -> bytes:
    if spec.media is Media.NPY:
        return encode_npy(result.rows)
    pixels = to_uint8(result.rows, spec.model.card)
    if spec.fps > 0 and spec.media in _ANIMATED:
        return animate(pixels, _ANIMATED[spec.media], fps=spec.fps)
    picture = pixels[0] if len(pixels) == 1 else _sheet(spec, pixels)
    return encode(picture, RASTER[spec.media])


def _sheet(spec: ResponseSpec, pixels: Pixels) -> Pixels:
    if spec.layout == "strip":
        return strip(pixels, spec.model.card)
    return contact_sheet(pixels, spec.model.card, columns=spec.columns)


def _row_headers(result: Result) -> dict[str, str]:
    headers = {
        "X-IGN-Steps": ",".join(map(str, result.steps.tolist())),
        "X-IGN-Distance": ",".join(str(round_metric(value)) for value in result.distance.tolist()),
    }
    if result.drift is not None:
        headers["X-IGN-Drift"] = ",".join(str(round_metric(value)) for value in result.drift.tolist())
    return headers


def _is_animation(spec: ResponseSpec) -> bool:
    return spec.fps > 0 and spec.media in _ANIMATED
