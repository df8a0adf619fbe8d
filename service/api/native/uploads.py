"""Read uploads (images, masks and latents, as multipart, JSON or a raw body) and decode them to rows."""

import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import numpy as np
from pydantic import BaseModel

from service.api.multipart import MUST_BE_A_FILE, parse_fields, parse_multipart, parse_query
from service.api.native.schemas import PointRequest, ProjectOptions, ProjectRequest, ScoreOptions, ScoreRequest
from service.api.native.validation import check_count
from service.api.negotiation import PICTURE_TYPES, Media
from service.api.request import ApiRequest, parse_as, parse_json, printable_name
from service.artifact.card import Card
from service.domain.errors import IgnError, InvalidContent, TooLarge, UnsupportedMedia
from service.domain.latents import FloatRow
from service.domain.tasks import Images, KeepMask
from service.images.decode import DecodeLimits, EncodedImage, Picture, decode_npy, is_picture, memory_for, open_image
from service.images.formats import is_tiff, tiff_pages
from service.images.prepare import Invert, Prepared, Resize, keep_mask, prepare, prepare_many, to_mask
from service.images.untrusted import decode_base64, is_small
from service.models.registry import ServedModel
from service.settings import Settings

Options = TypeVar("Options", bound=ScoreOptions)
Form = TypeVar("Form", bound=BaseModel)

UPLOAD_TYPES: Final = ("multipart/form-data", "application/json", *PICTURE_TYPES)
_CACHED_QUERY: Final = 256  # bytes; a longer query is not cached
_MAX_FIELDS: Final = 32  # of a form; there are about twelve options
_TIFF_TEXT: Final = re.compile("SUkq|TU0A")  # base64 of II* and MM\\0
_MAX_PREFIX: Final = 200  # characters before it: white space, and `data:image/tiff;base64,`
_HUB_IGNORED: Final = ("prompt", "negative_prompt", "guidance_scale", "target_size")  # no model here has a use for them
_MAX_INLINE: Final = 4  # small images; decoding them takes less time than waking a thread of the codec pool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upload(Generic[Form]):
    """The images of a request as bytes or base64 text. There is no mask, one for all images, or one for each.

    A TIFF of several pages is as many images.
    """

    options: Form
    images: Sequence[bytes | str]
    names: Sequence[str] = ()  # of the images in error messages
    masks: Sequence[bytes | str] = ()
    masks_by_alpha: bool = False  # transparent pixels are regenerated, instead of white ones
    image_field: str = "image"  # in error messages
    mask_field: str = "mask"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputRows:
    """The input rows of a request: (N, C, H, W) float32 in the model's range, or a list if the model takes any size.

    ``keep`` (N, 1, H, W) bool, or a list as well, is True for pixels that every step restores. ``inverted`` has for
    each uploaded image whether light and dark were exchanged, and ``chroma`` that of one whose luma is its row.
    """

    rows: Images
    keep: KeepMask | list[KeepMask] | None = None
    inverted: Sequence[bool] = ()
    chroma: Sequence[FloatRow | None] = ()


def check_upload(formats: tuple[Media, ...], schema: type[ScoreOptions]) -> Callable[[ApiRequest], None]:
    """The check of an endpoint that takes images in one of three kinds of body: a form, JSON or one image.

    Only the options of an image are in the query; `parse_upload` checks that of JSON.
    """

    def check(api: ApiRequest) -> None:
        api.media = api.negotiate(formats)
        if api.content_type in PICTURE_TYPES or api.headers.get("content-type") is None:
            _from_query(schema, api.query)
        elif api.content_type not in UPLOAD_TYPES:
            raise _unsupported()
        elif api.content_type != "application/json":
            api.reject_query()

    return check


def parse_upload(api: ApiRequest, schema: type[Options], body: type[Options], content: bytes) -> Upload[Options]:
    """The images and options of a request, from multipart, JSON or a raw body. Masks need `ProjectOptions`.

    Without a Content-Type, the body is an image. Raises `UnsupportedMedia` if that is not so, and `MalformedRequest`,
    `InvalidContent` or pydantic's `ValidationError` if the body or an option is invalid.
    """
    content_type, settings = api.content_type, api.services.settings
    if content_type == "multipart/form-data":
        upload = read_form(api, content, schema, "image", mask=issubclass(schema, ProjectOptions))
    elif content_type == "application/json":
        upload = _from_json(parse_as(body, _native_json(api, content)))
    elif content_type or is_picture(content):
        upload = Upload(options=_from_query(schema, api.query), images=[content], image_field="body")
    else:
        raise _unsupported()
    if any(map(_may_be_tiff, upload.images)):
        check_count(upload.image_field, len(upload.images), settings.max_images)
        upload = _with_pages(upload, settings)
    check_count(upload.image_field, len(upload.images), settings.max_images)
    return upload


def _unsupported() -> UnsupportedMedia:
    return UnsupportedMedia(f"Content-Type: expected one of {', '.join(UPLOAD_TYPES)}")


def _may_be_tiff(data: bytes | str) -> bool:
    return is_tiff(data) if isinstance(data, bytes) else _TIFF_TEXT.search(data, 0, _MAX_PREFIX) is not None


def _with_pages(upload: Upload[Options], settings: Settings) -> Upload[Options]:
    """The upload with an image for each page of a TIFF."""
    named: list[tuple[str, bytes | str]] = []
    for name, data in _named(upload.image_field, upload.images):
        pages = _pages(data, name, settings) if _may_be_tiff(data) else [data]
        named += [(f"{name}.page.{number}", page) for number, page in enumerate(pages)] if pages[1:] else [(name, data)]
    if upload.mask_field == "masks" and len(named) > len(upload.images):
        raise InvalidContent.field("masks", "an image has several pages; give one mask for all")
    names, images = zip(*named, strict=True)
    return replace(upload, images=images, names=names)


def _pages(data: bytes | str, name: str, settings: Settings) -> Sequence[bytes]:
    """A file for each page of a TIFF; none if it is damaged, which decoding reports."""
    try:
        content = decode_base64(data, field=name, max_chars=settings.max_body_bytes) if isinstance(data, str) else data
        return [page.file(with_orientation=True) for page in tiff_pages(content)]
    except Exception:  # a damaged file raises nearly any
        return ()


def is_large(upload: Upload[Options]) -> bool:
    """Whether the codec pool should decode the upload; the event loop decodes up to four small PNGs."""
    images = upload.images
    return bool(upload.masks) or len(images) > _MAX_INLINE or not all(map(is_small, images))


def image_sizes(api: ApiRequest, upload: Upload[Any]) -> list[tuple[int, int]]:
    """(H, W) of the images of an upload to a model that takes any size, by their headers."""
    settings = api.services.settings.for_images(any_size=True)
    named = _named(upload.image_field, upload.images)
    return [_take({}, field, data, settings).size for field, data in named]


def prepare_uploads(uploads: Sequence[tuple[ApiRequest, Upload[Any]]], card: Card) -> list[InputRows | IgnError]:
    """Decode uploads to one model and prepare their rows together; an invalid one has its error in place of rows.

    A large upload comes alone, in the codec pool. Its images and masks are decoded one at a time, because each of
    them can have `IGN_MAX_PIXELS`.
    """
    prepared: list[slice | IgnError] = []
    keep: list[KeepMask] = []  # an upload with masks is large
    # Decoding many small ones before preparing them is faster: the code and data of each step stay in the cache.
    try:
        with closing(_given(uploads, card, prepared, keep)) as pictures:
            if card.tiles is not None or card.color is not None:
                return [_prepare_each(pictures, prepared, keep, card)]
            rows, inverted = prepare_many(list(pictures) if len(uploads) > 1 else pictures, card)
    except InvalidContent:  # nothing could be decoded
        return [each for each in prepared if isinstance(each, IgnError)]
    kept = np.stack(keep) if keep else None
    return [
        InputRows(rows=rows[each], keep=kept, inverted=inverted[each]) if isinstance(each, slice) else each
        for each in prepared
    ]


def _given(
    uploads: Sequence[tuple[ApiRequest, Upload[Any]]],
    card: Card,
    prepared: list[slice | IgnError],
    keep: list[KeepMask],
) -> Generator[tuple[Picture, Resize, Invert], None, None]:
    """The images of uploads, one at a time; ``keep`` gets their masks. Raises `InvalidContent` if there is none.

    ``prepared`` gets the place of each upload's images among all, or the error of one.
    """
    count = 0
    for api, upload in uploads:
        first = count
        try:
            for each in _decode(api, upload, card, keep):
                count += 1
                yield each
                del each  # it holds the pixels while the next image is decoded
        except IgnError as exc:
            prepared.append(exc)
        else:
            prepared.append(slice(first, count))
    if not count:
        raise InvalidContent("no image")


def _prepare_each(
    pictures: Iterable[tuple[Picture, Resize, Invert]],
    prepared: Sequence[slice | IgnError],
    keep: list[KeepMask],
    card: Card,
) -> InputRows | IgnError:
    """As `prepare_uploads`, for one upload to a model that takes images of any size, or their luma."""
    made = list[Prepared]()
    for picture, resize, invert in pictures:
        width, height = picture.image.size
        made.append(prepare(picture, card.sized((height, width)), resize=resize, invert=invert))
        del picture
    for error in prepared:
        if isinstance(error, IgnError):
            return error
    rows, inverted, chroma = zip(*made, strict=True)
    if card.tiles is None:
        return InputRows(rows=np.stack(rows), keep=np.stack(keep) if keep else None, inverted=inverted, chroma=chroma)
    return InputRows(rows=[*rows], keep=keep or None, inverted=inverted, chroma=chroma)


def _decode(
    api: ApiRequest, upload: Upload[Any], card: Card, keep: list[KeepMask]
) -> Iterator[tuple[Picture, Resize, Invert]]:
    """Decode the images of an upload, one at a time, and add the masks that belong to them to ``keep``."""
    settings = api.services.settings.for_images(card.tiles)
    options, masks = upload.options, upload.masks
    named = list(zip(upload.names, upload.images, strict=True)) if upload.names else None
    named = named or _named(upload.image_field, upload.images)
    named_masks = _named(upload.mask_field, masks) if masks else []
    opened = _check_pixels(named + named_masks, settings, api.check_not_over)
    mask = None
    for i, (name, data) in enumerate(named):
        api.check_not_over()
        if i < len(named_masks):  # one mask for all images is decoded once
            mask_name, mask_data = named_masks[i]
            encoded = _take(opened, mask_name, mask_data, settings)
            with memory_for(encoded.pixels):
                api.check_not_over()  # waiting for the block may take long
                mask = to_mask(encoded, by_alpha=upload.masks_by_alpha)
        encoded = _take(opened, name, data, settings)
        with memory_for(encoded.pixels):
            api.check_not_over()
            picture = encoded.decode()
            del encoded  # it holds the pixels, too
            if mask is not None:
                sized = card.sized(picture.image.size[::-1])
                keep.append(keep_mask(mask, picture, sized, resize=options.resize, field=mask_name))
            yield picture, options.resize, options.invert
            del picture


def read_points(api: ApiRequest, model: ServedModel, field: str, points: Sequence[PointRequest]) -> list[FloatRow]:
    """The rows (C, H, W) of points, which come as seed, image or array; call it in the codec pool.

    Raises `InvalidContent` or `TooLarge` if an image or array is invalid, or all together are too large.
    """
    settings = api.services.settings.for_images(model.card.tiles)
    pictures = [(f"{field}.{i}.image", point.image) for i, point in enumerate(points) if point.image is not None]
    opened = _check_pixels(pictures, settings, api.check_not_over)

    def row(name: str, point: PointRequest) -> FloatRow:
        if point.seed is not None:
            return model.noise.row(point.seed, point.index or 0)
        if point.image is not None:
            api.check_not_over()
            encoded = _take(opened, f"{name}.image", point.image, settings)
            with memory_for(encoded.pixels):
                api.check_not_over()
                return prepare(encoded.decode(), model.card).row
        name = f"{name}.latent"
        array = decode_base64(point.latent or "", field=name, max_chars=settings.max_body_bytes)
        return decode_npy(array, model.card.shape, field=name)

    return [row(f"{field}.{i}", point) for i, point in enumerate(points)]


def read_form(api: ApiRequest, body: bytes, schema: type[Form], *images: str, mask: bool = True) -> Upload[Form]:
    """The files named ``images``, at most one ``mask``, and the options of a form; raises as `parse_upload`."""
    content_type, names = api.headers.get("content-type", ""), (*images, "mask") if mask else images
    limits = {"max_files": api.services.settings.max_images + 1, "max_fields": _MAX_FIELDS}
    fields, files = parse_multipart(content_type, body, file_names=names, **limits)
    for name in files:
        if name not in names:
            several = f"; for several, repeat `{name[:-1]}`" if name[:-1] in names else ""
            raise InvalidContent.field(printable_name(name), f"unknown file; expected {' or '.join(names)}{several}")
    if "image" in fields:
        raise InvalidContent.field("image", MUST_BE_A_FILE)
    mask_texts = fields.pop("mask", []) if mask else []  # a mask may come as base64 text, too
    masks = [*files.get("mask", ()), *mask_texts]
    if len(masks) > 1:
        raise InvalidContent.field("mask", "given more than once")
    uploaded = [data for name in images for data in files.get(name, ())]
    if not uploaded:
        raise InvalidContent.field("image", "at least one file is required")
    return Upload(options=schema.model_validate(parse_fields(fields)), images=uploaded, masks=masks)


def _native_json(api: ApiRequest, content: bytes) -> bytes:
    """A JSON body of this service for one of `huggingface_hub`: `{"inputs": IMAGE, "parameters": {…}}`.

    That client cannot choose a model but by the query of its URL, so options may be there, too.
    """
    values = parse_json(content) if b'"inputs"' in content else {}
    if "inputs" not in values or "images" in values:
        api.reject_query()
        return content
    images, parameters = [values.pop("inputs")], values.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise InvalidContent.field("parameters", "must be an object")
    options = {name: value for name, value in parameters.items() if name not in _HUB_IGNORED}
    if "num_inference_steps" in options:
        options["steps"] = options.pop("num_inference_steps")
    return json.dumps(parse_query(api.query) | values | options | {"images": images}).encode("ascii")


def _from_json(request: Options) -> Upload[Options]:
    images = request.images if isinstance(request, ProjectRequest | ScoreRequest) else []
    masks, mask_field = list[str](), "mask"
    if isinstance(request, ProjectRequest) and request.masks is not None:
        masks, mask_field = request.masks, "masks"
    elif isinstance(request, ProjectRequest) and request.mask is not None:
        masks = [request.mask]
    return Upload(options=request, images=images, masks=masks, image_field="images", mask_field=mask_field)


def _from_query(schema: type[Options], query: bytes) -> Options:
    return (_parse_query_cached if len(query) <= _CACHED_QUERY else _parse_query)(schema, query)


def _parse_query(schema: type[Options], query: bytes) -> Options:
    return schema.model_validate(parse_query(query))


# A client sends the same query with every image, and the parsed options are immutable.
_parse_query_cached: Callable[[type[Options], bytes], Options] = lru_cache(maxsize=256)(_parse_query)


def _check_pixels(
    images: Sequence[tuple[str, bytes | str]], settings: Settings, check_not_over: Callable[[], None]
) -> dict[str, EncodedImage]:
    """Add up the pixels of images by their headers. Errors other than their size are left to the decoder.

    Returns the opened images by field, so that no file is read twice; none if the limit of each image is enough.
    """
    limit = max(settings.max_request_pixels, settings.max_pixels)  # a single image within its own limit always passes
    if len(images) * settings.max_pixels <= limit:
        return {}  # the usual case
    total, opened = 0, dict[str, EncodedImage]()
    for field, data in images:
        check_not_over()
        opened[field] = _take(opened, field, data, settings)
        total += opened[field].pixels
        if total > limit:
            message = f"{field}: with it the request has {total} pixels; the limit, IGN_MAX_REQUEST_PIXELS, is {limit}"
            raise TooLarge(message, code="image_too_large")
    return opened


def _take(opened: dict[str, EncodedImage], field: str, data: bytes | str, settings: Settings) -> EncodedImage:
    """Remove an image from ``opened``, so that its memory is free once it is decoded; open it if it is not there."""
    limits = DecodeLimits(max_pixels=settings.max_pixels, max_chars=settings.max_body_bytes)
    return opened.pop(field, None) or open_image(data, limits, field=field)


def _named(field: str, items: Sequence[bytes | str]) -> list[tuple[str, bytes | str]]:
    """Items with their names in errors, such as `images.0`; a single body, file or shared mask has no number."""
    numbered = len(items) > 1 or field in ("images", "masks")
    return [(f"{field}.{i}" if numbered else field, item) for i, item in enumerate(items)]
