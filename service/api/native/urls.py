"""Images by URL: GET of `/generate` and `/latent-interpolate`, with the options in the query.

The query becomes the JSON body of the POST, so both are one request with one set of rules. The URL alone decides what
the response is, also its format. So browsers and proxies can cache it:

    GET ──▶ parse: options, model ──▶ ETag = hash(digest, options) ──▶ If-None-Match has it: 304
                                                                  └──▶ the stages of the POST, 200
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

from service.api.multipart import parse_query
from service.api.native import endpoints as native
from service.api.native.endpoints import RowWork
from service.api.negotiation import Media
from service.api.pipeline import Endpoint, ResponseParts
from service.api.request import ApiRequest, NotModified
from service.domain.errors import InvalidContent
from service.domain.latents import MAX_SEED

MAX_TEXT: Final = 200  # characters of a text seed
IMAGES: Final = {"png": Media.PNG, "webp": Media.WEBP, "jpeg": Media.JPEG}  # the first is the default
ANIMATIONS: Final = {"webp": Media.WEBP, "gif": Media.GIF, "apng": Media.APNG}
SHORT_FORMS: Final = ("png", "webp")
_LONG_S, _SHORT_S = 31_536_000, 60  # how long caches may keep an image of a named version, of the highest version
_DECIMAL: Final = re.compile("0|[1-9][0-9]{0,9}")
_NO_STORE: Final = {"Cache-Control": "no-store"}

Fields = dict[str, Any]


def seed_of(text: str, field: str = "seed") -> int:
    """The seed that a text names: a decimal number up to 2³² − 1 itself, else the start of the text's SHA-256.

    Raises `InvalidContent` for ``field`` unless it has 1 to 200 characters.
    """
    if not 1 <= len(text) <= MAX_TEXT:
        raise InvalidContent.field(field, f"must have 1 to {MAX_TEXT} characters")
    if _DECIMAL.fullmatch(text) and int(text) <= MAX_SEED:
        return int(text)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")


def as_json(api: ApiRequest, template: str, body: Fields) -> RowWork:
    """The work of a native endpoint for a request that arrived in another form."""
    api.content_type = "application/json"
    return cast(RowWork, NATIVE[template].parse(api, json.dumps(body).encode("ascii"), {}))


def _image(fields: Fields) -> Fields:
    return fields | ({"seed": seed_of(fields["seed"])} if "seed" in fields else {})


def _animation(fields: Fields) -> Fields:
    for name in ("points", "grid"):
        if name in fields:
            raise InvalidContent.field(name, "unknown query parameter; seeds=A,B,… names the points")
    seeds = fields.pop("seeds", "").split(",")
    if len(seeds) < 2:
        raise InvalidContent.field("seeds", "needs at least two, with a comma between them")
    return fields | {"points": [{"seed": seed_of(text, "seeds")} for text in seeds]}


def _parse(
    api: ApiRequest,
    body: bytes,
    parameters: Mapping[str, str],
    *,
    template: str,
    formats: Mapping[str, Media],
    translate: Callable[[Fields], Fields],
) -> RowWork:
    if body:
        raise InvalidContent.field("body", "a GET request has none; its options belong in the query")
    fields = parse_query(api.query, parameters)
    name = fields.pop("format", next(iter(formats)))
    if name not in formats:
        raise InvalidContent.field("format", f"must be one of {', '.join(formats)}")
    api.media = api.negotiate((formats[name],))
    work = as_json(api, template, translate(fields))
    headers = _cache_headers(work)
    if _is_known(headers.get("ETag"), api.headers.getlist("if-none-match")):
        raise NotModified(headers)
    return work


def _cache_headers(work: RowWork) -> dict[str, str]:
    """How caches may use the response. Those that several callers share keep one for each API key."""
    spec, options = work.spec, work.spec.options
    if spec.members.get("seed", 0) != getattr(options, "seed", 0):
        return _NO_STORE  # the service has chosen the seed
    what = (work.model.digest, spec.media, work.params, options.model_dump_json(exclude={"model"}))
    is_named = "/" in (getattr(options, "model", None) or "")
    return {
        # Weak: on another type of CPU the last bit of a pixel may differ.
        "ETag": f'W/"{hashlib.sha256(repr(what).encode("utf-8")).hexdigest()[:32]}"',
        "Cache-Control": f"max-age={_LONG_S}, immutable" if is_named else f"max-age={_SHORT_S}",
        "Vary": "Authorization",
    }


def _is_known(etag: str | None, values: Sequence[str]) -> bool:
    """Whether `If-None-Match` has the tag, by weak comparison (RFC 9110, section 13.1.2)."""
    tags = {tag.strip(" \t").removeprefix("W/") for value in values for tag in value.split(",")}
    return etag is not None and ("*" in tags or etag.removeprefix("W/") in tags)


def _respond(ended: Sequence[tuple[RowWork, native.Encoded]], *, template: str) -> list[ResponseParts]:
    responses = NATIVE[template].respond(ended)
    return [
        (headers | _cache_headers(work), pieces, media_type)
        for (work, _), (headers, pieces, media_type) in zip(ended, responses, strict=True)
    ]


def _by_url(
    template: str, formats: Mapping[str, Media], translate: Callable[[Fields], Fields], path: str = ""
) -> Endpoint:
    return NATIVE[template]._replace(
        template=path or template,
        methods=("GET", "HEAD"),
        check=lambda _: None,  # `parse` knows the format
        parse=partial(_parse, template=template, formats=formats, translate=translate),
        respond=partial(_respond, template=template),
    )


NATIVE: Final = {endpoint.template: endpoint for endpoint in native.ENDPOINTS}
ENDPOINTS: Final = (
    _by_url("/generate", IMAGES, _image),
    *(_by_url("/generate", {name: IMAGES[name]}, _image, f"/generate/{{seed}}.{name}") for name in SHORT_FORMS),
    _by_url("/latent-interpolate", ANIMATIONS, _animation),
)
