"""Parse responses into results. Members that this version of the client does not know are ignored.

`_wire` turns every LookupError, TypeError and ValueError of a parser into `UnexpectedAnswer`.
"""

import base64
import json
import re
from dataclasses import MISSING, fields
from typing import Any, Final, TypeVar

from ign_client import _results as results
from ign_client._picture import MEDIA
from ign_client._wire import Response

T = TypeVar("T")
ImageT = TypeVar("ImageT", bound=results.Image)
Document = dict[str, Any]

FORMATS: Final = {media: form for form, media in MEDIA.items()}
_DURATION: Final = re.compile(r"(\w+);dur=([0-9.]+)")


def document(response: Response) -> Document:
    body = json.loads(response.content)
    if not isinstance(body, dict):
        raise TypeError("expected a JSON object")
    return body


def value(kind: type[T], member: Document, **others: Any) -> T:
    """A dataclass from the members with the names of its fields; those of fields with a default may be missing."""
    found = {
        item.name: member[item.name]
        for item in fields(kind)  # type: ignore[arg-type] # the type of dataclasses is only in stubs
        if item.name not in others and (item.name in member or item.default is MISSING)
    }
    return kind(**found, **others)


def _image(kind: type[ImageT], member: Document) -> ImageT:
    shared = {"index": member["index"], "format": member["format"]}
    trajectory = tuple(step(shared | recorded) for recorded in member["trajectory"] or [])
    return value(kind, member, bytes=_data(member["data"]), trajectory=trajectory)


def images(kind: type[ImageT], response: Response) -> results.Images[ImageT]:
    return images_of(kind, document(response))


def images_of(kind: type[ImageT], answer: Document) -> results.Images[ImageT]:
    members = tuple(_image(kind, member) for member in answer["images"])
    return results.Images(images=members, seed=answer.get("seed"), **_head(answer))


def step(event: Document) -> results.Step:
    return value(results.Step, event, bytes=_data(event["data"]))


def scores(response: Response) -> results.Scores:
    answer = document(response)
    return results.Scores(images=tuple(value(results.Score, member) for member in answer["images"]), **_head(answer))


def raw(response: Response) -> results.Raw:
    """A response that is one file; the metadata is in its headers."""
    headers = response.headers
    name, version, digest = re.split("[/@]", headers["x-ign-model"])
    times = {f"{part}_ms": float(duration) for part, duration in _DURATION.findall(headers["server-timing"])}
    return results.Raw(
        bytes=response.content,
        format=FORMATS[response.media_type],
        model=results.ModelRef(name=name, version=version, digest=digest),
        request_id=headers["x-request-id"],
        timing=value(results.Timing, times),
        seed=int(headers["x-ign-seed"]) if "x-ign-seed" in headers else None,
        steps=tuple(int(text) for text in headers["x-ign-steps"].split(",")),
        distance=_numbers(headers["x-ign-distance"]),
        drift=_numbers(headers.get("x-ign-drift", "")),
    )


def models(response: Response) -> results.Models:
    answer = document(response)
    cards = tuple(map(_card, answer["models"]))
    return results.Models(models=cards, default=answer["default"], limits=value(results.Limits, answer["limits"]))


def card(response: Response) -> results.Card:
    return _card(document(response))


def readiness(response: Response) -> results.Readiness:
    """The response of `/readyz` with status 200 or 503."""
    if response.status == 200:
        status = document(response)["status"]
        return results.Readiness(ready=status == "ready", detail=status)
    return results.Readiness(ready=False, detail=response.problem(now=0.0).detail)


def _head(answer: Document) -> Document:
    return {
        "model": value(results.ModelRef, answer["model"]),
        "request_id": answer["request_id"],
        "timing": value(results.Timing, answer["timing"]),
    }


def _card(member: Document) -> results.Card:
    channels, height, width = member["shape"]
    low, high = member["range"]
    return value(results.Card, member, shape=(channels, height, width), range=(low, high), document=member)


def _data(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)
