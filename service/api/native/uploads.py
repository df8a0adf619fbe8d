"""Read uploads (images, masks and latents, as multipart, JSON or a raw body) and decode them to
rows.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel

from service.api.message import (
    check_count,
    decode_utf8,
    parse_as,
    parse_json,
    parse_multipart,
    parse_options,
    parse_query,
    printable_name,
)
from service.api.native.schemas import ImageOptions, PointRequest, UploadOptions
from service.api.negotiation import PICTURE_TYPES
from service.api.pipeline import InputRows
from service.api.request import ApiRequest
from service.artifact.card import Card
from service.domain.errors import InvalidContent, TooLarge, UnsupportedMedia
from service.domain.latents import FloatRow
from service.domain.tasks import KeepMask, StepParams
from service.images.decode import (
    DecodeLimits,
    EncodedImage,
    ImageBytes,
    decode_npy,
    is_picture,
    memory_for,
)
from service.images.prepare import (
    Mask,
    Prepared,
    keep_mask,
    prepare,
    prepare_many,
    to_mask,
)
from service.images.untrusted import decode_base64
from service.models.registry import ServedModel

WorkT = TypeVar("WorkT")  # `RowWork`, which imports this module

UPLOAD_TYPES: Final = ("multipart/form-data", "application/json", *PICTURE_TYPES)
_MUST_BE_A_FILE: Final = (
    "must be a file, with a file name or the Content-Type of an image; with curl, -F NAME=@FILE"
)
_MAX_FIELDS: Final = 32  # of a form; there are about twelve options
# no model here has a use for them
_HUB_IGNORED: Final = ("prompt", "negative_prompt", "guidance_scale", "target_size")
# small images; decoding them takes less time than waking a thread of the codec pool
_MAX_INLINE: Final = 4


@dataclass(slots=True, kw_only=True, eq=False)
class Upload:
    """The images of a request as they arrived. There is no mask, one for all images, or one for
    each.
    """

    options: Any  # as the endpoint's schema
    images: Sequence[ImageBytes]
    masks: Sequence[ImageBytes] = ()
    masks_by_alpha: bool = False  # transparent pixels are regenerated, instead of white ones
    has_pages: bool = True  # a TIFF of several pages is as many images; else it is refused


class OpenUpload(NamedTuple):
    """The images and masks of an upload whose headers are read; decoding takes them out."""

    images: list[EncodedImage]
    masks: list[EncodedImage]


def check_upload(api: ApiRequest, schema: type[UploadOptions]) -> None:
    """Check the head of a request with images: in a form, JSON or one as the body.

    Only the options of an image are in the query; `parse_upload` checks that of JSON.
    """
    if api.content_type in PICTURE_TYPES or api.headers.get(b"content-type") is None:
        _from_query(schema, api.query)
        if api.content_type:
            api.inline_body = sys.maxsize  # the body is not parsed
    elif api.content_type not in UPLOAD_TYPES:
        raise _unsupported()
    elif api.content_type != "application/json":
        api.reject_query()


def parse_upload(
    api: ApiRequest, schema: type[UploadOptions], body: type[BaseModel], content: bytes
) -> Upload:
    """The images and options of a request, from multipart, JSON or a raw body. A form may have a
    mask if the JSON of ``body`` may.

    Without a Content-Type, the body is an image, or empty, which counts as `{}`. Raises
    `UnsupportedMedia` if that is not so, and `MalformedRequest`, `InvalidContent` or pydantic's
    `ValidationError` if the body or an option is invalid.
    """
    content_type = api.content_type
    if content_type == "multipart/form-data":
        upload = read_form(api, content, schema, "image", mask="mask" in body.model_fields)
    elif content_type == "application/json" or not (content_type or content):
        upload = _from_json(_parse_json(api, body, content))
    elif content_type or is_picture(content):
        upload = Upload(options=_from_query(schema, api.query), images=_named("body", [content]))
    else:
        raise _unsupported()
    check_count(upload.images[0].field, len(upload.images), api.settings.max_images)
    return upload


def _unsupported() -> UnsupportedMedia:
    return UnsupportedMedia(f"Content-Type: expected one of {', '.join(UPLOAD_TYPES)}")


def _is_small(upload: Upload, card: Card) -> bool:
    """Whether the event loop may decode the upload: at most four small PNGs of the model's size,
    without masks.
    """
    if card.tiles or card.color or upload.masks or len(upload.images) > _MAX_INLINE:
        return False
    _, height, width = card.shape
    return not [image for image in upload.images if not image.is_png_of((width, height))]


def upload_work(
    make: Callable[..., WorkT],
    api: ApiRequest,
    model: ServedModel,
    upload: Upload,
    params: StepParams,
    options: ImageOptions,
    **more: Any,
) -> WorkT:
    """What ``make`` makes for images; ``more`` are fields of it. All uploads but points pass here,
    and then `open_upload`, unless they are small.
    """
    is_tiled = model.card.tiles is not None
    # A small one is a PNG, whose base64 may look like that of a TIFF.
    is_large = not _is_small(upload, model.card)
    pages = (
        is_large and upload.has_pages and [each for each in upload.images if each.may_have_pages]
    )
    return make(
        api=api,
        model=model,
        options=options,
        labels=[{"index": i} for i in range(len(upload.images))],
        is_tiled=is_tiled,
        must_open=bool(is_tiled or pages),
        params=params,
        source=upload,
        is_large=is_large,
        **more,
    )


def open_upload(api: ApiRequest, upload: Upload, card: Card) -> OpenUpload:
    """Read the headers of all images and masks, in a thread of the codec pool.

    Raises `InvalidContent` for too many pages, or as `ModelRegistry.check_default`, and `TooLarge`
    for an image beyond its limits, or for too many pixels of all together. Damage behind a header
    is left to the decoder.
    """
    settings = api.settings.for_images(card.tiles)
    limits = DecodeLimits(max_pixels=settings.max_pixels, max_chars=settings.max_body_bytes)
    images = list[EncodedImage]()
    for image in upload.images:
        api.check_not_over()
        if not upload.has_pages:
            images.append(image.open(limits))
            continue
        images += image.pages(limits, settings.max_images)
        check_count(image.field, len(images), settings.max_images)
    is_each = any(mask.field.startswith("masks") for mask in upload.masks)
    if is_each and len(images) > len(upload.images):
        raise InvalidContent.field("masks", "an image has several pages; give one mask for all")
    masks = [mask.open(limits) for mask in upload.masks]
    limit = settings.max_request_pixels
    total = 0
    if not api.names_model:
        for opened in images:
            api.services.registry.check_default(opened.field, opened.size)
    for opened in (*images, *masks):
        total += opened.pixels
        if total > limit:
            message = (
                f"{opened.field}: with it the request has {total} pixels; the limit, "
                f"four times IGN_MAX_PIXELS, is {limit}"
            )
            raise TooLarge(message, code="image_too_large")
    return OpenUpload(images, masks)


def decode_small(uploads: Sequence[Upload], card: Card) -> list[InputRows]:
    """The rows of small uploads to one model.

    Decoding many before preparing them is faster: the code and data of each step stay in the cache.
    """
    decoded = [
        (image.decode_png(card.shape[0]), upload.options.resize, upload.options.invert)
        for upload in uploads
        for image in upload.images
    ]
    rows, inverted = prepare_many(decoded, card)
    ends = accumulate([len(upload.images) for upload in uploads], initial=0)
    return [
        InputRows(rows=rows[start:end], inverted=inverted[start:end])
        for start, end in pairwise(ends)
    ]


def decode_large(api: ApiRequest, upload: Upload, opened: OpenUpload, card: Card) -> InputRows:
    """The rows of any upload. Images and masks are decoded one at a time: each of them can have
    `IGN_MAX_PIXELS`.
    """
    options = upload.options
    prepared = list[Prepared]()
    keep = list[KeepMask]()
    mask: Mask | None = None
    mask_field = ""
    while opened.images:
        if opened.masks:  # one mask for all images is decoded once
            encoded = opened.masks.pop(0)
            mask_field = encoded.field
            with memory_for(encoded.pixels):
                api.check_not_over()  # waiting for the block may take long
                mask = to_mask(encoded, by_alpha=upload.masks_by_alpha)
        encoded = opened.images.pop(0)
        with memory_for(encoded.pixels):
            api.check_not_over()
            picture = encoded.decode()
            sized = card.sized(picture.image.size[::-1])
            if mask is not None:
                fitted = keep_mask(mask, picture, sized, resize=options.resize, field=mask_field)
                keep.append(fitted)
            prepared.append(prepare(picture, sized, resize=options.resize, invert=options.invert))
            # both hold the pixels while the next image is decoded
            del picture, encoded
    rows, inverted, chroma = zip(*prepared, strict=True)
    join: Callable[..., Any] = np.stack if card.tiles is None else list
    return InputRows(
        rows=join(rows),
        keep=join(keep) if keep else None,
        inverted=inverted,
        chroma=chroma if card.color else (),
    )


def read_points(
    api: ApiRequest,
    model: ServedModel,
    field: str,
    points: Sequence[PointRequest],
) -> list[FloatRow]:
    """The rows (C, H, W) of points, which come as seed, image or array.

    Raises `InvalidContent` or `TooLarge` if an image or array is invalid, or all together are too
    large.
    """
    images = [
        ImageBytes(f"{field}.{number}.image", point.image)
        for number, point in enumerate(points)
        if point.image is not None
    ]
    upload = Upload(options=None, images=images, has_pages=False)
    opened = open_upload(api, upload, model.card).images
    rows = list[FloatRow]()
    for number, point in enumerate(points):
        api.check_not_over()
        if point.seed is not None:
            rows.extend(model.noise.rows(point.seed, point.index or 0, 1))
        elif point.image is not None:
            encoded = opened.pop(0)
            with memory_for(encoded.pixels):
                api.check_not_over()  # waiting for the block may take long
                rows.append(prepare(encoded.decode(), model.card).row)
            del encoded  # it holds the pixels, too
        else:
            name = f"{field}.{number}.latent"
            data = decode_base64(
                point.latent or "", field=name, max_chars=api.settings.max_body_bytes
            )
            rows.append(decode_npy(data, model.card.shape, field=name))
    return rows


def read_form(
    api: ApiRequest, body: bytes, schema: type[BaseModel], *images: str, mask: bool = True
) -> Upload:
    """The files named ``images``, at most one ``mask``, and the options of a form; raises as
    `parse_upload`.
    """
    names = (*images, "mask") if mask else images
    fields, files = parse_multipart(
        api.headers.get(b"content-type", ""),
        body,
        max_files=api.settings.max_images + 1,
        max_fields=_MAX_FIELDS,
    )
    for name in files:
        if name not in names:
            several = f"; for several, repeat `{name[:-1]}`" if name[:-1] in names else ""
            raise InvalidContent.field(
                printable_name(name), f"unknown file; expected {' or '.join(names)}{several}"
            )
    masks: list[bytes | str] = [*files.get("mask", ())]
    texts: list[tuple[str, str]] = []
    for name, value in fields:
        if name in images:
            raise InvalidContent.field(name, _MUST_BE_A_FILE)
        text = decode_utf8(value, printable_name(name))
        if name in names:  # a mask may come as base64, too
            masks.append(text)
        else:
            texts.append((name, text))
    if len(masks) > 1:
        raise InvalidContent.field("mask", "given more than once")
    uploaded = [data for name in images for data in files.get(name, ())]
    if not uploaded:
        raise InvalidContent.field("image", "at least one file is required")
    options = schema.model_validate(parse_options(texts), strict=False)
    return Upload(options=options, images=_named("image", uploaded), masks=_named("mask", masks))


def _parse_json(api: ApiRequest, schema: type[BaseModel], content: bytes) -> BaseModel:
    """A JSON body of this service, or of `huggingface_hub`: `{"inputs": IMAGE, "parameters": {…}}`.

    The latter cannot choose a model but by the query of its URL, so options may be there, too.
    """
    values = parse_json(content) if b'"inputs"' in content else {}
    if "inputs" not in values or "images" in values:
        api.reject_query()
        return parse_as(schema, content)
    images = [values.pop("inputs")]
    parameters = values.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise InvalidContent.field("parameters", "must be an object")
    options = {name: value for name, value in parameters.items() if name not in _HUB_IGNORED}
    if "num_inference_steps" in options:
        options["steps"] = options.pop("num_inference_steps")
    return schema.model_validate(
        parse_query(api.query) | values | options | {"images": images}, strict=False
    )


def _from_json(request: Any) -> Upload:
    masks = _named("masks", getattr(request, "masks", None) or ())
    if mask := getattr(request, "mask", None):
        masks = _named("mask", [mask])
    return Upload(options=request, images=_named("images", request.images), masks=masks)


@lru_cache(maxsize=256)
def _from_query(schema: type[UploadOptions], query: bytes) -> UploadOptions:
    """Options in a query. A client sends the same with every image, and nobody changes them."""
    return schema.model_validate(parse_query(query), strict=False)


def _named(field: str, items: Sequence[bytes | str]) -> list[ImageBytes]:
    """Items with their names in errors, such as `images.0`; a single body, file or shared mask has
    no number.
    """
    numbered = len(items) > 1 or field in ("images", "masks")
    return [ImageBytes(f"{field}.{i}" if numbered else field, item) for i, item in enumerate(items)]
