"""Split a call with many pictures into requests within the limits of the service, and join their results."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from ign_client import _inputs
from ign_client._errors import FieldError, InputError, StatusError
from ign_client._results import Image, Images, Limits, Score, Scores, Timing
from ign_client._wire import Call

CONCURRENT: Final = 4
"""Requests of one call that run at a time."""

# Every service allows so much unless it is configured otherwise, so smaller calls do not ask for its limits.
FEW: Final = 16
_SMALL: Final = 4 << 20
_ENLARGED: Final = 1 << 10  # pictures of one request × scale²; with 64×64 pixels a quarter of what a service allows
_ROOM: Final = 1 << 16  # of a body, for the options
_PER_PART: Final = 512  # bytes of a part's headers, or of JSON around a picture


@dataclass(frozen=True, slots=True)
class Part:
    """A request of a split call.

    Args:
        offset: index of its first picture in the whole call.
        build: makes the call.
    """

    offset: int
    build: Callable[[], Call[Any]]


class Upload:
    """The pictures and options of one call of `project` or `score`.

    Args:
        build: the function that builds the call.
        args, kwargs: its arguments.

    Raises:
        InputError: a picture cannot be sent.
        TypeError: the arguments do not fit the function.
    """

    def __init__(self, build: Callable[..., Call[Any]], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._build = build
        self._arguments = inspect.signature(build).bind(*args, **kwargs).arguments
        self._contents = _inputs.pictures(self._arguments["images"])
        self._most = most_enlarged(self._arguments.get("scale", 1))

    def named(self, error: StatusError) -> StatusError:
        """The error, whose text names the file of the picture, if it is one of several."""
        field, _, reason = error.detail.partition(":")
        match = re.fullmatch(r"images?\.([0-9]+)", field)
        if match is None or len(self._contents) == 1:
            return error
        source = self._arguments["images"][int(match[1])]
        if not isinstance(source, str | os.PathLike):
            return error
        return type(error)(replace(error.problem, detail=f"{field} ({os.fspath(source)}):{reason}"))

    @property
    def is_small(self) -> bool:
        """Whether one request takes all of it, whatever the limits."""
        count = len(self._contents)
        return count == 1 or (count <= min(FEW, self._most) and sum(map(len, self._contents)) <= _SMALL)

    def whole(self) -> Call[Any]:
        """The call as one request."""
        return self._build(**{**self._arguments, "images": self._contents})

    def parts(self, limits: Limits) -> list[Part]:
        """The requests, in the order of the pictures; a picture that is too large alone has one of its own.

        Raises:
            InputError: a mask cannot be sent, or there are not as many masks as pictures.
        """
        mask, masks = self._arguments.get("mask"), self._arguments.get("masks")
        shared: dict[str, Any] = {} if mask is None else {"mask": _inputs.mask(mask, "mask")}
        single = None if masks is None else [_inputs.mask(item, f"masks.{i}") for i, item in enumerate(masks)]
        if single is not None and len(single) != len(self._contents):
            raise InputError(f"masks: {len(single)} for {len(self._contents)} images")
        sizes = [len(data) + _PER_PART for data in self._contents]
        if single is not None:  # these bodies are JSON
            sizes = [(size + len(data)) * 4 // 3 + _PER_PART for size, data in zip(sizes, single, strict=True)]
        room = limits.body_bytes - _ROOM - len(shared.get("mask", b""))
        return [self._part(chosen, shared, single) for chosen in _groups(sizes, min(limits.images, self._most), room)]

    def _part(self, chosen: range, shared: Mapping[str, Any], masks: list[bytes] | None) -> Part:
        among = slice(chosen.start, chosen.stop)
        own = {**shared, "images": self._contents[among]}
        if masks is not None:
            own["masks"] = masks[among]
        return Part(chosen.start, lambda: self._build(**{**self._arguments, **own}))


def most_enlarged(scale: Any) -> int:
    """The most pictures for one request that enlarges them, so that they stay below the service's limit of pixels."""
    return max(1, _ENLARGED // scale**2) if isinstance(scale, int) and scale > 0 else _ENLARGED


def join(results: Sequence[Images[Any] | Scores], parts: Sequence[Part]) -> Images[Any] | Scores:
    """One result of all parts: model and request id of the first, times added, indices those of the whole call."""
    members: list[Any] = [
        _moved(member, part.offset) for part, result in zip(parts, results, strict=True) for member in result.images
    ]
    times = {name: sum(getattr(result.timing, name) for result in results) for name in (f.name for f in fields(Timing))}
    return replace(results[0], images=tuple(members), timing=Timing(**times))


def moved_error(error: StatusError, offset: int) -> StatusError:
    """The error of a part, whose fields and text name the pictures by their index in the whole call."""
    problem = error.problem
    errors = tuple(FieldError(_moved_field(item.field, offset), item.message) for item in problem.errors)
    name, colon, rest = problem.detail.partition(":")
    return type(error)(replace(problem, errors=errors, detail=_moved_field(name, offset) + colon + rest))


def _groups(sizes: Sequence[int], most: int, room: int) -> Iterator[range]:
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start >= most or total + size > room):
            yield range(start, i)
            start, total = i, 0
        total += size
    yield range(start, len(sizes))


def _moved(member: Image | Score, offset: int) -> Image | Score:
    index = member.index + offset
    if isinstance(member, Score):
        return replace(member, index=index)
    return replace(member, index=index, trajectory=tuple(replace(step, index=index) for step in member.trajectory))


def _moved_field(field: str, offset: int) -> str:
    match = re.fullmatch(r"(image|mask)(s?)(?:\.([0-9]+))?", field)
    if match is None or (match[1] == "mask" and match[3] is None):
        return field
    return f"{match[1]}s.{int(match[3] or 0) + offset}"
