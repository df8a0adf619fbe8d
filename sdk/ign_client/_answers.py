"""Parse responses into results. Members that this version of the client does not know are ignored."""

import base64
import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ign_client._picture import MEDIA
from ign_client._results import (
    MEASURES,
    Card,
    Frame,
    Image,
    Images,
    Limits,
    ModelRef,
    Models,
    ProjectedImage,
    Raw,
    Readiness,
    Score,
    Scores,
    Step,
    Timing,
)
from ign_client._wire import Response

ImageT = TypeVar("ImageT", bound=Image)
Document = dict[str, Any]
Build = Callable[[Document], ImageT]
"""Builds the value object of one member of `images`."""

FORMATS: Final = {media: form for form, media in MEDIA.items()}
_DURATION: Final = re.compile(r"(\w+);dur=([0-9.]+)")
_TIMES: Final = ("decode", "queue", "compute", "encode")


def document(response: Response) -> Document:
    """The JSON object in the body.

    Raises:
        ValueError: the body is not JSON.
        TypeError: the body is not an object.
    """
    body = json.loads(response.content)
    if not isinstance(body, dict):
        raise TypeError("expected a JSON object")
    return body


def image(member: Document) -> Image:
    """One picture of `/generate` and `/latent-arithmetic`."""
    return Image(**_common(member))


def projected(member: Document) -> ProjectedImage:
    """One picture of `/project`."""
    return ProjectedImage(**_common(member), inverted=member["inverted"])


def frame(member: Document) -> Frame:
    """One picture of `/latent-interpolate`."""
    return Frame(**_common(member), t=member.get("t"), row=member.get("row"), col=member.get("col"))


def images(build: Build[ImageT]) -> Callable[[Response], Images[ImageT]]:
    """A parser of responses whose pictures ``build`` creates."""

    def parse(response: Response) -> Images[ImageT]:
        return images_of(document(response), build)

    return parse


def images_of(answer: Document, build: Build[ImageT]) -> Images[ImageT]:
    """The result in the JSON object of a response."""
    pictures = tuple(build(member) for member in answer["images"])
    return Images(images=pictures, seed=answer.get("seed"), **_head(answer))


def step(event: Document) -> Step:
    """One recorded step, from an event of a stream or from `trajectory`."""
    return Step(
        bytes=_data(event["data"]),
        format=event["format"],
        index=event["index"],
        step=event["step"],
        change=event["change"],
    )


def scores(response: Response) -> Scores:
    """The answer of `/score`."""
    answer = document(response)
    measured = tuple(Score(**{name: member[name] for name in MEASURES}) for member in answer["images"])
    return Scores(images=measured, **_head(answer))


def raw(response: Response) -> Raw:
    """A response that is one file; the metadata is in its headers.

    Raises:
        LookupError, ValueError: a header is missing or invalid.
    """
    headers = response.headers
    name, version, digest = re.split("[/@]", headers["x-ign-model"])
    times = {
        f"{part}_ms": float(value) for part, value in _DURATION.findall(headers["server-timing"]) if part in _TIMES
    }
    return Raw(
        bytes=response.content,
        format=FORMATS[response.media_type],
        model=ModelRef(name=name, version=version, digest=digest),
        request_id=headers["x-request-id"],
        timing=Timing(**times),
        seed=int(headers["x-ign-seed"]) if "x-ign-seed" in headers else None,
        steps=tuple(int(text) for text in headers["x-ign-steps"].split(",")),
        distance=_numbers(headers["x-ign-distance"]),
        drift=_numbers(headers.get("x-ign-drift", "")),
    )


def models(response: Response) -> Models:
    """The answer of `/models`."""
    answer = document(response)
    names = ("n", "images", "steps", "frames", "body_bytes", "pixels")
    return Models(
        models=tuple(_card(member) for member in answer["models"]),
        default=answer["default"],
        limits=Limits(**{name: answer["limits"][name] for name in names}),
    )


def card(response: Response) -> Card:
    """The answer of `/models/…`."""
    return _card(document(response))


def readiness(response: Response) -> Readiness:
    """The response of `/readyz` with status 200 or 503."""
    if response.status == 200:
        status = document(response)["status"]
        return Readiness(ready=status == "ready", detail=status)
    return Readiness(ready=False, detail=response.problem(now=0.0).detail)


def _common(member: Document) -> Document:
    names = ("index", "format", "width", "height", "steps", "converged", "distance", "drift")
    recorded = member["trajectory"] or []
    shared = {"index": member["index"], "format": member["format"]}
    return {
        **{name: member[name] for name in names},
        "bytes": _data(member["data"]),
        "trajectory": tuple(step(shared | recorded_step) for recorded_step in recorded),
    }


def _head(answer: Document) -> Document:
    model_ref, timing = answer["model"], answer["timing"]
    return {
        "model": ModelRef(**{name: model_ref[name] for name in ("name", "version", "digest")}),
        "request_id": answer["request_id"],
        "timing": Timing(**{f"{part}_ms": timing[f"{part}_ms"] for part in _TIMES}),
    }


def _card(member: Document) -> Card:
    names = ("name", "version", "digest", "device", "provider")
    channels, height, width = member["shape"]
    low, high = member["range"]
    texts = {name: member[name] for name in names}
    return Card(**texts, shape=(channels, height, width), range=(low, high), document=member)


def _data(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)
