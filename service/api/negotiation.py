"""Content negotiation: choose the media type of a response by the Accept header (RFC 9110, section
12.5.1).
"""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from service.domain.errors import MalformedRequest, NotAcceptable

Json = dict[str, Any]
"""An object of JSON."""


class Media(StrEnum):
    """The media types of responses, in order of preference among equal weights."""

    JSON = "application/json"
    PNG = "image/png"
    WEBP = "image/webp"
    JPEG = "image/jpeg"
    NPY = "application/x-npy"
    TIFF = "image/tiff"
    EVENTS = "text/event-stream"
    GIF = "image/gif"
    APNG = "image/apng"


PICTURE_TYPES: Final = tuple(
    f"image/{name}" for name in ("png", "jpeg", "webp", "tiff", "bmp", "gif", "avif")
)
"""The media types of uploaded images. The first bytes of an image decide which it is."""

# The media ranges that match each media type, most specific first.
_PATTERNS: Final = {media: (media.value, f"{media.partition('/')[0]}/*", "*/*") for media in Media}

MAX_LENGTH: Final = 4096  # characters of the Accept header; browsers send about 150

# All quantifiers are possessive (`*+`), so that a hostile header cannot cause backtracking: the
# time is linear. Empty list elements and empty parameters are allowed (RFC 9110, section 5.6.1). So
# are the lone `*` and the weights without a leading zero (`q=.2`) that Java's URLConnection sends.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_PARAMETER: Final = rf"[ \t]*+;[ \t]*+(?:{_WORD}=(?:{_WORD}|{_QUOTED}))?+"
_ELEMENT: Final = re.compile(
    rf"[ \t]*+(?:({_WORD})(?:/({_WORD}))?+((?:{_PARAMETER})*+))?+[ \t]*+(?:,|\Z)"
)
_PARAMETERS: Final = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})")
_WEIGHT: Final = re.compile(r"(?:0?\.[0-9]{1,9}|0\.?|1(?:\.0{0,9})?)")


@lru_cache(maxsize=256)  # a client sends the same header with every request
def negotiate(accept: str | None, offers: tuple[Media, ...]) -> Media:
    """Choose the offer with the highest weight; several Accept headers come joined by commas, None
    accepts everything.

    Among equal weights the order of `Media` decides, so `*/*` gives JSON and `image/*` gives PNG.
    The weight of an offer is that of the most specific range that matches it. Parameters other than
    `q` are ignored.

    Raises `MalformedRequest` for a weight outside 0…1 or no media ranges, and `NotAcceptable` if
    every weight is 0.
    """
    ranges = _ranges(accept) if accept and accept.strip(" \t,") else {"*/*": 1.0}
    best = None
    best_weight = 0.0
    for media in (each for each in Media if each in offers):
        weight = next((ranges[pattern] for pattern in _PATTERNS[media] if pattern in ranges), 0.0)
        if weight > best_weight:
            best = media
            best_weight = weight
    if best is None:
        raise NotAcceptable(
            f"this answer can be had as {', '.join(m for m in Media if m in offers)}"
        )
    return best


def _ranges(accept: str) -> dict[str, float]:
    """Media ranges in lower case with their weights, by ascending weight, so that the best
    duplicate counts.
    """
    if len(accept) > MAX_LENGTH:
        raise MalformedRequest(f"Accept is longer than {MAX_LENGTH} characters")
    ranges: list[tuple[str, float]] = []
    position = 0
    while position < len(accept):
        match = _ELEMENT.match(accept, position)
        if match is None:
            raise MalformedRequest("Accept is not a list of media ranges")
        position = match.end()
        if match[1]:
            ranges.append((_range(match[1].lower(), match[2]), _quality(match[3])))
    return dict(sorted(ranges, key=lambda pair: pair[1]))


def _range(main_type: str, subtype: str | None) -> str:
    if subtype is None and main_type != "*":
        raise MalformedRequest(f"Accept: {main_type!r} is not a media range")
    if main_type == "*" and subtype not in (None, "*"):
        raise MalformedRequest("Accept: only */* may leave the type open")
    return f"{main_type}/{(subtype or '*').lower()}"


def _quality(parameters: str) -> float:
    for name, value in _PARAMETERS.findall(parameters):
        if name.lower() == "q":
            if not _WEIGHT.fullmatch(value):
                raise MalformedRequest("Accept: q must be a number from 0 to 1")
            return float(value)
    return 1.0
