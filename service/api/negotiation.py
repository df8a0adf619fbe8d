"""Content negotiation: choose the media type of a response by the Accept header (RFC 9110, section
12.5.1).
"""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final
from urllib.request import parse_http_list

from python_multipart.multipart import parse_options_header

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
_MAX_RANGE: Final = 256  # characters of a media range with its parameters

# A bare `*` and weights without a leading zero (`q=.2`) are allowed: Java's URLConnection sends
# them.
_RANGE: Final = re.compile(rb"\*(/\*)?|[^\s*/]+/(\*|[^\s*/]+)")
_WEIGHT: Final = re.compile(rb"0?\.[0-9]{1,9}|0\.?|1(\.0{0,9})?")


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
    weights = {
        media: next((ranges[pattern] for pattern in _PATTERNS[media] if pattern in ranges), 0.0)
        for media in Media
        if media in offers
    }
    # the first of those with the highest weight
    best = max(weights, key=weights.__getitem__)
    if not weights[best]:
        raise NotAcceptable(f"this answer can be had as {', '.join(weights)}")
    return best


def _ranges(accept: str) -> dict[str, float]:
    """Media ranges in lower case with their weights, by ascending weight, so that the best
    duplicate counts.
    """
    if len(accept) > MAX_LENGTH:
        raise MalformedRequest(f"Accept is longer than {MAX_LENGTH} characters")
    ranges: list[tuple[str, float]] = []
    for element in filter(None, parse_http_list(accept)):
        # of a long one this would take quadratic time
        name, parameters = parse_options_header(element[:_MAX_RANGE])
        weight = parameters.get(b"q", b"1")
        if len(element) > _MAX_RANGE or not _RANGE.fullmatch(name):
            raise MalformedRequest(f"Accept: {element!r} is not a media range")
        if not _WEIGHT.fullmatch(weight):
            raise MalformedRequest("Accept: q must be a number from 0 to 1")
        ranges.append(("*/*" if name == b"*" else name.decode("latin-1"), float(weight)))
    return dict(sorted(ranges, key=lambda pair: pair[1]))
