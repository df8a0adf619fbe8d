"""Uploads to rows: pictures, masks and latents, as multipart, JSON or a raw body."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, Generic, TypeVar

import numpy as np
from starlette.datastructures import QueryParams

from service.api.http.multipart import parse_multipart
from service.api.http.request_context import ApiRequest, parse_as
from service.api.native import form_fields
from service.api.native.schemas import PointRequest, ProjectOptions, ProjectRequest, ScoreOptions, ScoreRequest
from service.api.native.validation import check_count
from service.domain.errors import InvalidContent, UnsupportedMedia
from service.domain.latents import FloatRow, FloatRows
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
from service.models.registry import ServedModel
from service.settings import Settings

Options = TypeVar("Options", bound=ScoreOptions)

PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp")
_CACHED_QUERY: Final = 256  # bytes; longer queries are parsed anew every time
_MAX_FIELDS = 32  # of a form; there are about a dozen options
_MAX_INLINE = 4  # small pictures; the event loop decodes so many faster than a thread wakes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upload(Generic[Options]):
    """The pictures of a request, not yet decoded.

    Args:
        options: parsed options of the endpoint.
        images: one picture each: bytes, or base64 text.
        masks: none, one for all images, or one for each image.
        image_field, mask_field: field paths of images and masks, for errors.
    """

    options: Options
    images: Sequence[bytes | str]
    masks: Sequence[bytes | str] = ()
    image_field: str = "image"
    mask_field: str = "mask"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputRows:
    """Rows for the scheduler.

    Args:
        rows: (N, C, H, W) float32 in the model's range.
        keep: pixels that every step puts back, or None.
        inverted: for each uploaded picture, whether it was inverted.
    """

    rows: FloatRows
    keep: KeepMask | None = None
    inverted: Sequence[bool] = ()


async def read_upload(api: ApiRequest, schema: type[Options], body: type[Options]) -> Upload[Options]:
    """The request's pictures and options, from multipart, JSON or a raw body.

    Args:
        api: the request.
        schema: of the options, as forms and queries carry them; with masks if it is that of a projection.
        body: of the JSON form: the same and `images`.

    Raises:
        UnsupportedMedia: none of the three.
        MalformedRequest, InvalidContent, ValidationError, TooLarge: as the contract says.
    """
    kind = api.content_type()
    if kind == "multipart/form-data":
        api.reject_query()
        upload = await _from_form(api, schema)
    elif kind == "application/json":
        api.reject_query()
        content = await api.read_body()
        upload = _from_json(await api.parse(content, partial(parse_as, body, content)))
    elif kind in PICTURE_TYPES:
        query = api.request.scope["query_string"]
        options = (_from_query_cached if len(query) <= _CACHED_QUERY else _from_query)(schema, query)
        upload = Upload(options=options, images=[await api.read_body()], image_field="body")
    else:
        expected = ", ".join(("multipart/form-data", "application/json", *PICTURE_TYPES))
        raise UnsupportedMedia(f"Content-Type: expected one of {expected}")
    check_count(upload.image_field, len(upload.images), api.services.settings.max_images)
    return upload


def is_large(upload: Upload[Options]) -> bool:
    """Whether the codec pool decodes it; the event loop decodes a few small PNGs."""
    images = upload.images
    return bool(upload.masks) or len(images) > _MAX_INLINE or not all(map(is_small, images))


def prepare_upload(upload: Upload[Options], model: ServedModel, settings: Settings) -> InputRows:
    """Decode and prepare every picture; runs in the codec pool if `is_large`.

    Raises:
        InvalidContent, TooLarge: a picture or mask is unusable; the text names which.
    """
    card, options = model.card, upload.options
    limits, max_chars = DecodeLimits(max_pixels=settings.max_pixels), settings.max_body_bytes

    def mask(i: int) -> tuple[Mask, str]:
        name = _field_name(upload.mask_field, i, upload.masks)
        return decode_mask(_to_bytes(upload.masks[i], name, max_chars), limits, field=name), name

    for_all = mask(0) if len(upload.masks) == 1 else None
    rows = np.empty((len(upload.images), *card.shape), dtype=np.float32)
    inverted, keep = [], []
    for i, data in enumerate(upload.images):
        field = _field_name(upload.image_field, i, upload.images)
        picture = decode_picture(_to_bytes(data, field, max_chars), limits, field=field)
        prepared = prepare(picture, card, resize=options.resize, invert=options.invert)
        rows[i] = prepared.row
        inverted.append(prepared.inverted)
        if upload.masks:
            own, name = for_all or mask(i)  # one mask at a time, to bound memory
            keep.append(keep_mask(own, picture, card, resize=options.resize, field=name))
    return InputRows(rows=rows, keep=np.stack(keep) if keep else None, inverted=inverted)


@dataclass(frozen=True, slots=True)
class PointReader:
    """Reads the latents of a request: by seed, as a picture, or as an array.

    Args:
        model: whose noise and shape count.
        settings: limits of size.
    """

    model: ServedModel
    settings: Settings

    def rows(self, field: str, points: Sequence[PointRequest]) -> list[FloatRow]:
        """The rows (C, H, W) of the points of ``field``; runs in the codec pool.

        Raises:
            InvalidContent, TooLarge: a picture or array is unusable; the text names the point.
        """
        return [self._row(f"{field}.{i}", point) for i, point in enumerate(points)]

    def _row(self, field: str, point: PointRequest) -> FloatRow:
        card, max_chars = self.model.card, self.settings.max_body_bytes
        if point.seed is not None:
            return self.model.noise.row(point.seed, point.index or 0)
        if point.image is not None:
            field = f"{field}.image"
            limits = DecodeLimits(max_pixels=self.settings.max_pixels)
            picture = decode_picture(decode_base64(point.image, field=field, max_chars=max_chars), limits, field=field)
            return prepare(picture, card).row
        field = f"{field}.latent"
        return decode_npy(decode_base64(point.latent or "", field=field, max_chars=max_chars), card.shape, field=field)


async def _from_form(api: ApiRequest, schema: type[Options]) -> Upload[Options]:
    body = await api.read_body()
    fields, files = await api.parse(
        body,
        partial(
            parse_multipart,
            api.headers.get("content-type", ""),
            body,
            max_files=api.services.settings.max_images + 1,
            max_fields=_MAX_FIELDS,
        ),
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
    fields: dict[str, list[str]] = {}
    for name, value in QueryParams(query).multi_items():
        fields.setdefault(name, []).append(value)
    return schema.model_validate(form_fields.values(fields))


# Clients repeat their queries, and parsed options never change.
_from_query_cached: Callable[[type[Options], bytes], Options] = lru_cache(maxsize=256)(_from_query)


def _to_bytes(data: bytes | str, field: str, max_chars: int) -> bytes:
    return data if isinstance(data, bytes) else decode_base64(data, field=field, max_chars=max_chars)


def _field_name(field: str, i: int, among: Sequence[object]) -> str:
    """`images.0`; a raw body and a mask for all are one thing, and have no number."""
    return f"{field}.{i}" if len(among) > 1 or field in ("images", "masks") else field
