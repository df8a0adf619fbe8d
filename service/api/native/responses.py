"""Build responses from results: JSON with base64 pictures, a raw picture, a contact sheet, an animation, or `.npy`."""

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
METRIC_DECIMALS: Final = 6  # of distance, drift and change in answers
_IN_DISTRIBUTION: Final = 99.0  # highest percentile, among the distances of real pictures, that counts as real
_INLINE: Final = 1 << 13  # values; encoding so few takes less time than waking a thread of the codec pool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSpec:
    """How a result becomes a response.

    Args:
        model: the model that ran.
        media: the negotiated media type.
        format: of base64 pictures.
        labels: for each image, the members that are not in the result: `index`, `inverted`, `t`, `row`, `col`.
        members: members of the JSON body before `images`: `seed`, if the endpoint has one.
        layout: how a raw response combines several pictures: a near-square sheet, or a strip of one row.
        columns: of the sheet; None for ceil(√N).
        fps: frames per second; if above 0, WebP, GIF and APNG are animations.
        closed: repeat the first picture at the end (a loop); the model does not run it again.
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


def check_format(spec: ResponseSpec, record: Sequence[int] = ()) -> None:
    """Check before the model runs that the format can hold the response.

    Raises:
        InvalidContent: ``record`` with a raw response, or a sheet larger than its format allows.
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
        # `timing` includes the time of encoding the images, so the rest of the body is written after them, and the
        # encoded images are inserted as text.
        before, marker, after = _json(envelope(api, spec.model, [], spec.members)).partition(b'"images":[')
        content = before + marker[:-1] + pictures + after[1:]
        return Response(
            content, headers=api.response_headers(spec.model, spec.members.get("seed")), media_type=Media.JSON
        )
    content = await api.run_codec("encode", partial(_raw, spec, result), large=result.rows.size > _INLINE)
    headers = api.response_headers(spec.model, spec.members.get("seed")) | _row_headers(result)
    return Response(content, headers=headers, media_type=spec.media)


def respond_scores(api: ApiRequest, model: ServedModel, result: Result) -> Response:
    """The response of `/score`, which has numbers and no pictures."""
    api.count_rows(model, result)
    drifts = [] if result.drift is None else result.drift.tolist()
    images: list[dict[str, Any]] = []
    for index, (distance, drift) in enumerate(zip(result.distance.tolist(), drifts, strict=True)):
        measured = {"index": index, "distance": round_metric(distance), "drift": round_metric(drift)}
        images.append(measured | in_distribution_fields(model.card, distance))
    content = _json(envelope(api, model, images))
    return Response(content, headers=api.response_headers(model), media_type=Media.JSON)


def in_distribution_fields(card: ModelCard, distance: float) -> dict[str, Any]:
    """The percentile of a distance among those of real pictures, and whether it is at most 99; None if unknown."""
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
    """The JSON body with its images; ``members`` come before `images`."""
    card = model.card
    model_ref = {"name": card.name, "version": card.version, "digest": f"sha256:{model.digest}"}
    head: dict[str, Any] = {"model": model_ref, "request_id": api.request_id, **members}
    return head | {"images": images, "timing": api.timing()}


def image(spec: ResponseSpec, result: Result, index: int, data: str | None) -> dict[str, Any]:
    """One member of `images`, without its trajectory.

    Args:
        spec: of the response.
        result: the finished request.
        index: of the row.
        data: the picture of the row in base64, or None if a stream sent it already.
    """
    _, height, width = spec.model.card.shape
    return {
        **spec.labels[index],
        "data": data,
        "format": spec.format,
        "width": width,
        "height": height,
        "steps": int(result.steps[index]),
        "converged": bool(result.converged[index]),
        "distance": round_metric(result.distance[index]),
        "drift": None if result.drift is None else round_metric(result.drift[index]),
        "trajectory": None,
    }


def picture(row: FloatRow, card: ModelCard, picture_format: Format) -> str:
    """Encode one row (C, H, W) as a base64 picture."""
    if picture_format == "npy":
        return encode_base64(encode_npy(row))
    return encode_base64(encode(to_uint8(row, card), picture_format))


def round_metric(value: float) -> float:
    """A distance, drift or change as responses show it: rounded to 6 decimals."""
    return round(float(value), METRIC_DECIMALS)


def _images(spec: ResponseSpec, result: Result) -> list[dict[str, Any]]:
    card, picture_format = spec.model.card, spec.format
    if picture_format == "npy":
        data = [picture(row, card, picture_format) for row in result.rows]
    else:
        data = [encode_base64(encode(pixels, picture_format)) for pixels in to_uint8(result.rows, card)]
    images = [image(spec, result, index, text) for index, text in enumerate(data)]
    for index, steps in enumerate(result.trajectory):
        if steps:
            images[index]["trajectory"] = [_recorded_step(step, card, picture_format) for step in steps]
    return images


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _recorded_step(step: StepOutput, card: ModelCard, picture_format: Format) -> dict[str, Any]:
    change = None if step.change is None else round_metric(step.change)
    return {"step": step.step, "data": picture(step.row, card, picture_format), "change": change}


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
        "X-IGN-Distance": ",".join([str(round(value, METRIC_DECIMALS)) for value in result.distance.tolist()]),
    }
    if result.drift is not None:
        headers["X-IGN-Drift"] = ",".join([str(round(value, METRIC_DECIMALS)) for value in result.drift.tolist()])
    return headers


def _is_animation(spec: ResponseSpec) -> bool:
    return spec.fps > 0 and spec.media in _ANIMATED
