"""Parse responses into results. Members that this version of the client does not know are ignored.

`errors.unexpected` turns every error of a parser into `UnexpectedAnswer`.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar, get_type_hints

from ign_client import _results as results
from ign_client._options import fits
from ign_client._picture import MEDIA
from ign_client._wire import Response

T = TypeVar("T")
ImageT = TypeVar("ImageT", bound=results.Image)
Document = dict[str, Any]


class Expected(NamedTuple):
    """What the images of a response must be, because they were asked for."""

    format: str = "png"
    total: int | None = None  # None if the service decides
    first: int = 0  # index of the first one in the response
    moved: int = 0  # to the index of the first one in the result


def document(response: Response) -> Document:
    return typed(json.loads(response.content), dict)


def typed(member: Any, hint: Any) -> Any:
    """The value of a member if it has this type, with a tuple in place of a list; else a
    TypeError.
    """
    if not fits(member, hint):
        raise TypeError(f"expected {hint}, not {type(member).__name__}")
    return tuple(member) if isinstance(member, list) else member


def value(kind: Callable[..., T], member: Document, **others: Any) -> T:
    """A dataclass from the members with the names of its fields; those of fields with a default may
    be missing.
    """
    found = {
        name: typed(member[name], hint)
        for name, (hint, is_required) in _fields(kind).items()
        if name not in others and (is_required or name in member)
    }
    return kind(**found, **others)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each field of a dataclass, and whether it has no default."""
    hints = get_type_hints(kind)
    return {item.name: (hints[item.name], item.default is MISSING) for item in fields(kind)}


def images(kind: type[ImageT], expected: Expected, response: Response) -> results.Images[ImageT]:
    return images_of(kind, expected, document(response))


def images_of(kind: type[ImageT], expected: Expected, answer: Document) -> results.Images[ImageT]:
    return _result(results.Images, expected, answer, partial(_image, kind, expected))


def scores(expected: Expected, response: Response) -> results.Scores:
    return _result(results.Scores, expected, document(response), _score)


def _score(member: Document) -> results.Score:
    return value(
        results.Score,
        member,
        worst=value(results.Box, member["worst"]) if "worst" in member else None,
    )


def _result(
    kind: type[T], expected: Expected, answer: Document, parse: Callable[[Document], object]
) -> T:
    first = expected.first
    total = len(answer["images"]) if expected.total is None else expected.total
    if [member["index"] for member in answer["images"]] != list(range(first, first + total)):
        raise ValueError(f"expected {total} images from index {first} on")
    members = tuple(
        parse({**member, "index": member["index"] + expected.moved}) for member in answer["images"]
    )
    return value(
        kind,
        answer,
        images=members,
        model=value(results.ModelRef, answer["model"]),
        timing=value(results.Timing, answer["timing"]),
    )


def _image(kind: type[ImageT], expected: Expected, member: Document) -> ImageT:
    shared = {"index": member["index"], "format": member["format"]}
    trajectory = tuple(step(expected, shared | recorded) for recorded in member["trajectory"] or [])
    return value(kind, member, bytes=_content(expected, member), trajectory=trajectory)


def step(expected: Expected, event: Document) -> results.Step:
    return value(results.Step, event, bytes=_content(expected, event))


def _content(expected: Expected, member: Document) -> bytes:
    if member["format"] != expected.format:
        raise ValueError(f"format: expected {expected.format}")
    return base64.b64decode(member["data"], validate=True)


def raw(form: str, response: Response) -> results.Raw:
    """A response that is one file in this format; the metadata is in its headers."""
    if response.media_type != MEDIA[form]:
        raise ValueError(f"expected {MEDIA[form]}, not {response.media_type!r:.80}")
    headers = response.headers
    name, version, digest = re.split("[/@]", headers["x-ign-model"])
    return results.Raw(
        bytes=response.content,
        format=form,
        model=results.ModelRef(name=name, version=version, digest=digest),
        request_id=headers["x-request-id"],
        seed=int(headers["x-ign-seed"]) if "x-ign-seed" in headers else None,
        steps=tuple(int(text) for text in headers["x-ign-steps"].split(",")),
        distance=_numbers(headers["x-ign-distance"]),
        drift=_numbers(headers.get("x-ign-drift", "")),
    )


def models(response: Response) -> results.Models:
    answer = document(response)
    return value(
        results.Models,
        answer,
        models=tuple(map(_card, answer["models"])),
        limits=value(results.Limits, answer["limits"]),
    )


def card(response: Response) -> results.Card:
    return _card(document(response))


def readiness(response: Response) -> results.Readiness:
    """The response of `/readyz` with status 200 or 503."""
    is_known = response.status == 200
    detail = typed(document(response)["status"], str) if is_known else response.error().detail
    return results.Readiness(ready=is_known and detail == "ready", detail=detail)


def _card(member: Document) -> results.Card:
    return value(results.Card, member, document=member)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)
