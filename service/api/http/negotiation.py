"""Proactive negotiation: which of the forms an endpoint offers the caller's `Accept` asks for (RFC 9110, 12.5.1)."""

import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Final

from service.domain.errors import MalformedRequest, NotAcceptable


class Media(StrEnum):
    """The forms an answer can have, in the order in which equal wishes are served."""

    JSON = "application/json"
    PNG = "image/png"
    WEBP = "image/webp"
    JPEG = "image/jpeg"
    NPY = "application/x-npy"
    EVENTS = "text/event-stream"
    GIF = "image/gif"
    APNG = "image/apng"


# The ranges that match each form, most specific first.
_PATTERNS: Final = {media: (media.value, f"{media.partition('/')[0]}/*", "*/*") for media in Media}

MAX_LENGTH: Final = 4096  # characters of `Accept`; browsers send about 150

# Possessive throughout: linear time, whatever the header. Empty list elements and empty parameters are allowed, as is
# the lone `*` of Java's URLConnection, whose weights begin with the point (`q=.2`).
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_PARAMETER: Final = rf"[ \t]*+;[ \t]*+(?:{_WORD}=(?:{_WORD}|{_QUOTED}))?+"
_ELEMENT: Final = re.compile(rf"[ \t]*+(?:({_WORD})(?:/({_WORD}))?+((?:{_PARAMETER})*+))?+[ \t]*+(?:,|\Z)")
_PARAMETERS: Final = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})")
_WEIGHT: Final = re.compile(r"(?:0?\.[0-9]{1,9}|0\.?|1(?:\.0{0,9})?)")


@lru_cache(maxsize=256)  # for clients that repeat themselves
def negotiate(accept: str | None, offers: tuple[Media, ...]) -> Media:
    """The offer with the highest weight; equal weights go by the order of `Media`, so `*/*` is JSON and `image/*` PNG.

    An offer's weight is that of the most specific range that matches it. Parameters other than `q` are ignored.

    Args:
        accept: the header's value, several headers joined by commas; None or blank accepts everything.
        offers: what the endpoint can answer this request with.

    Raises:
        MalformedRequest: not a list of media ranges, or a weight that is not 0…1.
        NotAcceptable: every offer has weight 0 or is not mentioned.
    """
    ranges = dict(_ranges(accept)) if accept and accept.strip(" \t,") else {"*/*": 1.0}
    best, best_weight = None, 0.0
    for media, patterns in _PATTERNS.items():
        weight = _weight(patterns, ranges) if media in offers else 0.0
        if weight > best_weight:
            best, best_weight = media, weight
    if best is None:
        raise NotAcceptable(f"this answer can be had as {', '.join(m for m in Media if m in offers)}")
    return best


def _weight(patterns: tuple[str, ...], ranges: dict[str, float]) -> float:
    for pattern in patterns:
        if pattern in ranges:
            return ranges[pattern]
    return 0.0


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Media ranges in lower case with their weights, in ascending order of weight: of repeated ones the best counts."""
    if len(accept) > MAX_LENGTH:
        raise MalformedRequest(f"Accept is longer than {MAX_LENGTH} characters")
    found: list[tuple[str, float]] = []
    at = 0
    while at < len(accept):
        match = _ELEMENT.match(accept, at)
        if match is None:
            raise MalformedRequest("Accept is not a list of media ranges")
        at = match.end()
        if match[1]:
            found.append((_range(match[1].lower(), match[2]), _quality(match[3])))
    return iter(sorted(found, key=lambda pair: pair[1]))


def _range(kind: str, subtype: str | None) -> str:
    if subtype is None and kind != "*":
        raise MalformedRequest(f"Accept: {kind!r} is not a media range")
    if kind == "*" and subtype not in (None, "*"):
        raise MalformedRequest("Accept: only */* may leave the type open")
    return f"{kind}/{(subtype or '*').lower()}"


def _quality(parameters: str) -> float:
    for name, value in _PARAMETERS.findall(parameters):
        if name.lower() == "q":
            if not _WEIGHT.fullmatch(value):
                raise MalformedRequest("Accept: q must be a number from 0 to 1")
            return float(value)
    return 1.0
