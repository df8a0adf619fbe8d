"""Images by URL: GET of `/generate` and `/latent-interpolate`, with the options in the query.

The query becomes the JSON body of the POST, so both are one request with one set of rules. The URL
alone decides what the response is, also its format. So browsers and proxies can cache it:

    GET ──▶ parse: options, model ──▶ ETag = hash(digest, options) ──▶ the caller has the image: 304
                                                                  └──▶ the stages of the POST, 200
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any, Final

from pydantic import BaseModel

from service.api.info.openapi import url_parameters
from service.api.message import is_known, parse_query
from service.api.native.endpoints import generate, latent_interpolate
from service.api.native.responses import RowWork
from service.api.native.schemas import GenerateRequest, InterpolateRequest
from service.api.negotiation import Media
from service.api.pipeline import Stages
from service.api.request import ApiRequest, NotModified, raw_headers
from service.api.table import Endpoint
from service.domain.errors import InvalidContent
from service.domain.latents import MAX_SEED_TEXT, seed_of

# the first is the default
IMAGES: Final = {"png": Media.PNG, "webp": Media.WEBP, "jpeg": Media.JPEG}
SUFFIXES: Final = {"png": "png", "webp": "webp", "jpg": "jpeg", "jpeg": "jpeg"}
ANIMATIONS: Final = {"webp": Media.WEBP, "gif": Media.GIF, "apng": Media.APNG}
_SEED: Final = {
    "description": "A number, or a text that stands for one; random if absent.",
    "maxLength": MAX_SEED_TEXT,
}
_SEEDS: Final = {
    "description": "2 to 16 seeds, joined by commas.",
    "pattern": "^[^,]{1,200}(,[^,]{1,200}){1,15}$",
}
_LONG_S: Final = 31_536_000  # how long caches may keep an image of a named version
_SHORT_S: Final = 60  # of the highest version

_GENERATE: Final = """Generate images as a URL.

The options of the POST as the query, `record` excepted. A `seed` may be a text, such as `alice`,
which `/generate/alice.png`, `.webp` and `.jpg` have in the path; `X-IGN-Seed` has its number.
Caches may keep the image: for a year if `model` names a version."""
_INTERPOLATE: Final = """Walk between images as a URL.

An animation of the path through `seeds`, with the options of the POST as the query. Caches may
keep it, as those of `GET /generate`."""

Fields = dict[str, Any]


def seed_of_field(text: str, field: str) -> int:
    """`seed_of`; raises `InvalidContent` for the field."""
    try:
        return seed_of(text)
    except ValueError as exc:
        raise InvalidContent.field(field, str(exc)) from exc


def _animation(fields: Fields) -> Fields:
    for name in fields.keys() & {"points", "grid"}:
        raise InvalidContent.field(name, "unknown query parameter; seeds=A,B,… names the points")
    seeds = fields.pop("seeds", "").split(",")
    if len(seeds) < 2:
        raise InvalidContent.field("seeds", "needs at least two, with a comma between them")
    return fields | {"points": [{"seed": seed_of_field(text, "seeds")} for text in seeds]}


def _by_url(
    path: str,
    make: Callable[[ApiRequest, Any], RowWork],
    request: type[BaseModel],
    formats: Mapping[str, Media],
    translate: Callable[[Fields], Fields] = dict,
    **documented: Any,
) -> Endpoint:
    def parse(api: ApiRequest, body: bytes) -> RowWork:
        if body:
            raise InvalidContent.field(
                "body", "a GET request has none; its options belong in the query"
            )
        fields = parse_query(api.query, api.route.parameters)
        name = fields.pop("format", next(iter(formats)))
        if name not in formats:
            raise InvalidContent.field("format", f"must be one of {', '.join(formats)}")
        api.negotiate((formats[name],))
        work = make(api, request.model_validate(translate(fields), strict=False))
        headers = _cache_headers(work)
        if "ETag" in headers and is_known(headers, api.headers):
            raise NotModified(headers)
        work.caching = raw_headers(headers)
        return work

    return Endpoint(
        path,
        Stages(lambda _: None, parse),
        methods=("GET", "HEAD"),
        formats=tuple(formats.values()),
        is_cached=True,
        **documented,
    )


def _cache_headers(work: RowWork) -> dict[str, str]:
    """How caches may use the response. Those that several callers share keep one for each API
    key.
    """
    options = work.options
    # the service has chosen the seed
    if work.members.get("seed", 0) != getattr(options, "seed", 0):
        return {"Vary": "Accept", "Cache-Control": "no-store"}
    what = (
        work.model.digest,
        work.api.media,
        work.params,
        options.model_dump_json(exclude={"model"}),
    )
    # Not in the second of a change: an image of before could have the same time.
    changed = (
        {"Last-Modified": formatdate(work.model.since, usegmt=True)}
        if time.time() >= work.model.since
        else {}
    )
    is_named = "/" in (getattr(options, "model", None) or "")
    return {
        # Weak: on another type of CPU the last bit of a pixel may differ.
        "ETag": f'W/"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}"',
        "Cache-Control": f"max-age={_LONG_S}, immutable" if is_named else f"max-age={_SHORT_S}",
        "Vary": "Authorization",
        **changed,
    }


ENDPOINTS: Final = (
    _by_url(
        "/generate",
        generate,
        GenerateRequest,
        IMAGES,
        tag="Images",
        name="generate_url",
        parameters=url_parameters(GenerateRequest, {"seed": _SEED}, IMAGES),
        text=_GENERATE,
    ),
    *(
        _by_url(
            f"/generate/{{seed:text}}.{suffix}", generate, GenerateRequest, {name: IMAGES[name]}
        )
        for suffix, name in SUFFIXES.items()
    ),
    _by_url(
        "/latent-interpolate",
        latent_interpolate,
        InterpolateRequest,
        ANIMATIONS,
        _animation,
        tag="Images",
        name="latent_interpolate_url",
        parameters=url_parameters(InterpolateRequest, {"seeds": _SEEDS}, ANIMATIONS),
        text=_INTERPOLATE,
    ),
)
