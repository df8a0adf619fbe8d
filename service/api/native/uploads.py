"""What `/project` and points are given: pictures, masks and latents in three forms, one kind of row out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, TypeVar

import numpy as np
from starlette.datastructures import QueryParams

from service.api.http.multipart import parse_multipart
from service.api.http.request_context import ApiRequest
from service.api.native import form_fields
from service.api.native.limits import check_count
from service.api.native.schemas import PointRequest, ProjectOptions, ProjectRequest, ScoreOptions, ScoreRequest
from service.domain.errors import InvalidContent, UnsupportedMedia
from service.domain.latents import FloatRows
from service.domain.tasks import KeepMask
from service.images import (
    DecodeLimits,
    Mask,
    decode_base64,
    decode_mask,
    decode_npy,
    decode_picture,
    is_small,
    keep_mask,
    prepare,
)
from service.models.engine import Point, RowPoint, SeedPoint
from service.models.repository import LoadedModel

Options = TypeVar("Options", bound=ScoreOptions)

PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp")
_USUAL: Final = 256  # bytes of a query that may be remembered
_MAX_FIELDS = 32  # of a form; there are about a dozen options
_MAX_INLINE = 4  # small pictures decoded in less time than a thread takes to wake and to hand the lock back


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upload(Generic[Options]):
    """Pictures as they came.

    Args:
        options: parsed options, of the endpoint's own kind.
        images: one picture each: bytes, or base64 text that is yet to be decoded.
        masks: none, one for all, or one for each image.
        image_field, mask_field: field paths of images and masks, for errors.
    """

    options: Options
    images: Sequence[bytes | str]
    masks: Sequence[bytes | str] = ()
    image_field: str = "image"
    mask_field: str = "mask"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedRows:
    """Rows made from pictures: (N, C, H, W), what to keep of them, and which were inverted."""

    rows: FloatRows
    keep: KeepMask | None
    inverted: Sequence[bool]


async def read_upload(exchange: ApiRequest, schema: type[Options], body: type[Options]) -> Upload[Options]:
    """The request's pictures and options, from multipart, JSON or a raw body.

    Args:
        exchange: the request.
        schema: of the options, as forms and queries carry them; with masks if it is that of a projection.
        body: of the JSON form: the same and `images`.

    Raises:
        UnsupportedMedia: none of the three.
        MalformedRequest, InvalidContent, ValidationError, TooLarge: as the contract says.
    """
    kind, _ = exchange.content_type()
    if kind == "multipart/form-data":
        exchange.refuse_query()
        upload = await _from_form(exchange, schema)
    elif kind == "application/json":
        exchange.refuse_query()
        upload = _from_json(await exchange.parse_json(await exchange.body(), body))
    elif kind in PICTURE_TYPES:
        query = exchange.request.scope["query_string"]
        options = (_usual if len(query) <= _USUAL else _from_query)(schema, query)
        upload = Upload(options=options, images=[await exchange.body()], image_field="body")
    else:
        expected = ", ".join(("multipart/form-data", "application/json", *PICTURE_TYPES))
        raise UnsupportedMedia(f"Content-Type: expected one of {expected}")
    check_count(upload.image_field, len(upload.images), exchange.services.settings.max_images)
    return upload


def is_large(upload: Upload[Options]) -> bool:
    """Whether decoding belongs in the codec pool, rather than on the event loop: more than a few small PNGs do."""
    images = upload.images
    return bool(upload.masks) or len(images) > _MAX_INLINE or not all(map(is_small, images))


def prepare_upload(upload: Upload[Options], model: LoadedModel, limits: DecodeLimits, max_chars: int) -> PreparedRows:
    """Decode and prepare every picture; runs in the codec pool where `is_large` says so.

    Raises:
        InvalidContent, TooLarge: a picture or mask is unusable; the text names which.
    """
    card, options = model.card, upload.options

    def mask(i: int) -> tuple[Mask, str]:
        name = _nth(upload.mask_field, i, upload.masks)
        return decode_mask(_bytes(upload.masks[i], name, max_chars), limits, field=name), name

    for_all = mask(0) if len(upload.masks) == 1 else None
    rows = np.empty((len(upload.images), *card.shape), dtype=np.float32)
    inverted, keep = [], []
    for i, data in enumerate(upload.images):
        field = _nth(upload.image_field, i, upload.images)
        picture = decode_picture(_bytes(data, field, max_chars), limits, field=field)
        prepared = prepare(picture, card, resize=options.resize, invert=options.invert)
        rows[i] = prepared.row
        inverted.append(prepared.inverted)
        if upload.masks:
            own, name = for_all or mask(i)  # no more than one at a time is decoded
            keep.append(keep_mask(own, picture, card, resize=options.resize, field=name))
    return PreparedRows(rows=rows, keep=np.stack(keep) if keep else None, inverted=inverted)


def resolve_points(
    points: Sequence[PointRequest], model: LoadedModel, limits: DecodeLimits, max_chars: int, *, name: str = "points"
) -> list[Point]:
    """Latents by seed, by picture or by value; runs in the codec pool. ``name`` is their field's, for errors.

    Raises:
        InvalidContent, TooLarge: a picture or array is unusable; the text names the point.
    """
    resolved: list[Point] = []
    for i, point in enumerate(points):
        if point.seed is not None:
            resolved.append(SeedPoint(seed=point.seed, index=point.index or 0))
        elif point.image is not None:
            field = f"{name}.{i}.image"
            picture = decode_picture(decode_base64(point.image, field=field, max_chars=max_chars), limits, field=field)
            resolved.append(RowPoint(row=prepare(picture, model.card).row))
        else:
            field = f"{name}.{i}.latent"
            data = decode_base64(point.latent or "", field=field, max_chars=max_chars)
            resolved.append(RowPoint(row=decode_npy(data, model.card.shape, field=field)))
    return resolved


async def _from_form(exchange: ApiRequest, schema: type[Options]) -> Upload[Options]:
    content_type = exchange.headers.get("content-type", "")
    body = await exchange.body()
    limit = exchange.services.settings.max_images
    fields, files = await exchange.aside(
        lambda: parse_multipart(content_type, body, max_files=limit + 1, max_fields=_MAX_FIELDS), large=True
    )
    images = files.pop("image", [])
    masked = issubclass(schema, ProjectOptions)
    masks = list(files.pop("mask", [])) if masked else []
    mask_texts = fields.pop("mask", []) if masked else []
    for name in files:
        expected = "image or mask" if masked else "image"
        raise InvalidContent.field(name[:200], f"unknown file; expected {expected}")
    if "image" in fields:
        raise InvalidContent.field("image", "must be a file, with a file name or the Content-Type of a picture")
    if len(masks) + len(mask_texts) > 1:
        raise InvalidContent.field("mask", "given more than once")
    if not images:
        raise InvalidContent.field("image", "at least one file is required")
    options = schema.model_validate(form_fields.values(fields))
    return Upload(options=options, images=images, masks=[*masks, *mask_texts])


def _from_json(request: Options) -> Upload[Options]:
    masks: list[str] = []
    mask_field = "mask"
    if isinstance(request, ProjectRequest):
        if request.masks is not None:
            masks, mask_field = request.masks, "masks"
        elif request.mask is not None:
            masks = [request.mask]
    images = request.images if isinstance(request, ProjectRequest | ScoreRequest) else []
    return Upload(options=request, images=images, masks=masks, image_field="images", mask_field=mask_field)


def _from_query(schema: type[Options], query: bytes) -> Options:
    found: dict[str, list[str]] = {}
    for name, value in QueryParams(query).multi_items():
        found.setdefault(name, []).append(value)
    return schema.model_validate(form_fields.values(found))


# Clients say the same all day, and options do not change once they are made.
_usual: Callable[[type[Options], bytes], Options] = lru_cache(maxsize=256)(_from_query)


def _bytes(data: bytes | str, field: str, max_chars: int) -> bytes:
    return data if isinstance(data, bytes) else decode_base64(data, field=field, max_chars=max_chars)


def _nth(field: str, i: int, among: Sequence[object]) -> str:
    """`images.0`; a raw body and a mask for all are one thing, and have no number."""
    return f"{field}.{i}" if len(among) > 1 or field in ("images", "masks") else field
