"""Read uploads (pictures, masks and latents, as multipart, JSON or a raw body) and decode them to rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, TypeVar

import numpy as np
from starlette.datastructures import QueryParams

from service.api.multipart import MUST_BE_A_FILE, parse_fields, parse_multipart
from service.api.native.schemas import PointRequest, ProjectOptions, ProjectRequest, ScoreOptions, ScoreRequest
from service.api.native.validation import check_count
from service.api.request import ApiRequest, parse_as, printable_name
from service.domain.errors import IgnError, InvalidContent, TooLarge, UnsupportedMedia
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import KeepMask
from service.images.decode import DecodeLimits, EncodedImage, Picture, decode_npy, open_image
from service.images.prepare import Invert, Mask, Resize, keep_mask, prepare, prepare_many, to_mask
from service.images.untrusted import decode_base64, is_small
from service.models.registry import ServedModel
from service.settings import Settings

Options = TypeVar("Options", bound=ScoreOptions)

PICTURE_TYPES: Final = ("image/png", "image/jpeg", "image/webp")
UPLOAD_TYPES: Final = ("multipart/form-data", "application/json", *PICTURE_TYPES)
_CACHED_QUERY: Final = 256  # bytes; a longer query is not cached
_MAX_FIELDS: Final = 32  # of a form; there are about twelve options
_MAX_INLINE: Final = 4  # small pictures; decoding them takes less time than waking a thread of the codec pool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upload(Generic[Options]):
    """The pictures of a request, not yet decoded.

    Args:
        images: one picture each: bytes, or base64 text.
        masks: none, one for all images, or one for each image.
        image_field, mask_field: names of the two fields in error messages.
    """

    options: Options
    images: Sequence[bytes | str]
    masks: Sequence[bytes | str] = ()
    image_field: str = "image"
    mask_field: str = "mask"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputRows:
    """The input rows of a request, ready for the scheduler.

    Args:
        rows: (N, C, H, W) float32 in the model's range.
        keep: (N, 1, H, W) bool, True for pixels that every step restores; or None.
        inverted: for each uploaded picture, whether light and dark were exchanged.
    """

    rows: FloatRows
    keep: KeepMask | None = None
    inverted: Sequence[bool] = ()


def check_upload(api: ApiRequest, schema: type[ScoreOptions]) -> None:
    """Check what the head of a request says of its upload, before the body is read.

    Raises:
        UnsupportedMedia: the body is neither a form, nor JSON, nor a picture.
        InvalidContent, ValidationError: an option in the query is invalid, or stands there though the body has options.
    """
    content_type = api.content_type
    if content_type in PICTURE_TYPES:
        _from_query(schema, api.query)
        return
    if content_type not in UPLOAD_TYPES:
        raise UnsupportedMedia(f"Content-Type: expected one of {', '.join(UPLOAD_TYPES)}")
    api.reject_query()


def parse_upload(api: ApiRequest, schema: type[Options], body: type[Options], content: bytes) -> Upload[Options]:
    """The pictures and options of a request, from multipart, JSON or a raw body.

    Args:
        schema: of the options in forms and queries; masks are accepted with `ProjectOptions` only.
        body: schema of the JSON body: the same options and `images`.

    Raises:
        MalformedRequest, InvalidContent, ValidationError: the body or an option is invalid.
    """
    content_type, settings = api.content_type, api.services.settings
    if content_type == "multipart/form-data":
        upload = _from_form(api.headers.get("content-type", ""), content, schema, settings)
    elif content_type == "application/json":
        upload = _from_json(parse_as(body, content))
    else:
        upload = Upload(options=_from_query(schema, api.query), images=[content], image_field="body")
    check_count(upload.image_field, len(upload.images), settings.max_images)
    return upload


def is_large(upload: Upload[Options]) -> bool:
    """Whether the codec pool should decode the upload; the event loop decodes up to four small PNGs."""
    images = upload.images
    return bool(upload.masks) or len(images) > _MAX_INLINE or not all(map(is_small, images))


def prepare_upload(
    upload: Upload[Options], model: ServedModel, settings: Settings, check_not_over: Callable[[], None]
) -> InputRows:
    """Decode every picture and mask and prepare the rows; call it in the codec pool if `is_large`.

    Args:
        check_not_over: raises if the request is over; called before every picture, because decoding one of the largest
            pictures takes a second or more.

    Raises:
        InvalidContent, TooLarge: a picture or mask is invalid, or all together are too large; the text names it.
    """
    card, options = model.card, upload.options
    named = [
        (_field_name(field, i, items), item)
        for field, items in ((upload.image_field, upload.images), (upload.mask_field, upload.masks))
        for i, item in enumerate(items)
    ]
    opened = _check_pixels(named, settings, check_not_over)

    def mask(i: int) -> tuple[Mask, str]:
        name = _field_name(upload.mask_field, i, upload.masks)
        return to_mask(_take(opened, name, upload.masks[i], settings)), name

    shared_mask = mask(0) if len(upload.masks) == 1 else None
    keep: list[KeepMask] = []

    def pictures() -> Iterator[tuple[Picture, Resize, Invert]]:  # one at a time: a decoded one can be large
        for i, picture in enumerate(_decode_upload(upload, opened, settings, check_not_over)):
            if upload.masks:
                # Masks too are decoded one at a time, because each can have as many pixels as the largest picture.
                decoded_mask, name = shared_mask or mask(i)
                keep.append(keep_mask(decoded_mask, picture, card, resize=options.resize, field=name))
            yield picture, options.resize, options.invert

    rows, inverted = prepare_many(pictures(), card)
    return InputRows(rows=rows, keep=np.stack(keep) if keep else None, inverted=inverted)


def prepare_uploads(
    uploads: Sequence[Upload[Options]], model: ServedModel, settings: Settings
) -> list[InputRows | IgnError]:
    """As `prepare_upload` for several small uploads without masks; returns an error in place of raising it."""
    prepared: list[IgnError | slice] = []
    pictures: list[tuple[Picture, Resize, Invert]] = []
    for upload in uploads:
        options, first = upload.options, len(pictures)
        named = [(_field_name(upload.image_field, i, upload.images), item) for i, item in enumerate(upload.images)]
        try:
            opened = _check_pixels(named, settings, _go_on)
            decoded = list(_decode_upload(upload, opened, settings, _go_on))
        except IgnError as exc:
            prepared.append(exc)
            continue
        pictures += [(picture, options.resize, options.invert) for picture in decoded]
        prepared.append(slice(first, len(pictures)))
    if not pictures:
        return [each for each in prepared if isinstance(each, IgnError)]
    rows, inverted = prepare_many(pictures, model.card)
    return [
        InputRows(rows=rows[each], inverted=inverted[each]) if isinstance(each, slice) else each for each in prepared
    ]


def _decode_upload(
    upload: Upload[Options],
    opened: dict[str, EncodedImage],
    settings: Settings,
    check_not_over: Callable[[], None],
) -> Iterator[Picture]:
    """Decode the images of an upload, one at a time; those in ``opened`` are taken out of it."""
    for i, data in enumerate(upload.images):
        check_not_over()
        field = _field_name(upload.image_field, i, upload.images)
        yield _take(opened, field, data, settings).decode()


def _go_on() -> None:
    """Small pictures need no check between them."""


@dataclass(frozen=True, slots=True)
class PointReader:
    """Reads the latents of a request, which come as seed, picture or array.

    Args:
        check_not_over: raises if the request is over; called before every picture.
    """

    model: ServedModel
    settings: Settings
    check_not_over: Callable[[], None]

    def rows(self, field: str, points: Sequence[PointRequest]) -> list[FloatRow]:
        """The rows (C, H, W) of the points in ``field``; call it in the codec pool.

        Raises:
            InvalidContent, TooLarge: a picture or array is invalid, or all together are too large; the text names the
                point.
        """
        pictures = [(f"{field}.{i}.image", point.image) for i, point in enumerate(points) if point.image is not None]
        opened = _check_pixels(pictures, self.settings, self.check_not_over)
        return [self._row(f"{field}.{i}", point, opened) for i, point in enumerate(points)]

    def _row(self, field: str, point: PointRequest, opened: dict[str, EncodedImage]) -> FloatRow:
        card, max_chars = self.model.card, self.settings.max_body_bytes
        if point.seed is not None:
            return self.model.noise.row(point.seed, point.index or 0)
        if point.image is not None:
            self.check_not_over()
            field = f"{field}.image"
            return prepare(_take(opened, field, point.image, self.settings).decode(), card).row
        field = f"{field}.latent"
        return decode_npy(decode_base64(point.latent or "", field=field, max_chars=max_chars), card.shape, field=field)


def _from_form(content_type: str, body: bytes, schema: type[Options], settings: Settings) -> Upload[Options]:
    accepts_mask = issubclass(schema, ProjectOptions)
    fields, files = parse_multipart(
        content_type,
        body,
        max_files=settings.max_images + 1,
        max_fields=_MAX_FIELDS,
        file_names=("image", "mask") if accepts_mask else ("image",),
    )
    images = files.pop("image", [])
    masks = list(files.pop("mask", [])) if accepts_mask else []
    mask_texts = fields.pop("mask", []) if accepts_mask else []  # a mask may come as base64 text, too
    for name in files:
        expected = "image or mask" if accepts_mask else "image"
        raise InvalidContent.field(printable_name(name), f"unknown file; expected {expected}")
    if "image" in fields:
        raise InvalidContent.field("image", MUST_BE_A_FILE)
    if len(masks) + len(mask_texts) > 1:
        raise InvalidContent.field("mask", "given more than once")
    if not images:
        raise InvalidContent.field("image", "at least one file is required")
    options = schema.model_validate(parse_fields(fields))
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
    return (_parse_query_cached if len(query) <= _CACHED_QUERY else _parse_query)(schema, query)


def _parse_query(schema: type[Options], query: bytes) -> Options:
    fields: dict[str, list[str]] = {}
    for name, value in QueryParams(query).multi_items():
        fields.setdefault(name, []).append(value)
    return schema.model_validate(parse_fields(fields))


# A client sends the same query with every picture, and the parsed options are immutable.
_parse_query_cached: Callable[[type[Options], bytes], Options] = lru_cache(maxsize=256)(_parse_query)


def _check_pixels(
    images: Sequence[tuple[str, bytes | str]], settings: Settings, check_not_over: Callable[[], None]
) -> dict[str, EncodedImage]:
    """Add up the pixels of images by their headers. Errors other than their size are left to the decoder.

    Returns:
        The opened images by field, so that no file is read twice; empty if the limit of each image is enough.

    Raises:
        TooLarge: one image, or all together, have too many pixels.
    """
    limit = max(settings.max_request_pixels, settings.max_pixels)  # a single image within its own limit always passes
    if len(images) * settings.max_pixels <= limit:
        return {}  # the usual case
    limits, total, opened = _limits(settings), 0, dict[str, EncodedImage]()
    for field, data in images:
        check_not_over()
        opened[field] = open_image(data, limits, field=field)
        total += opened[field].pixels
        if total > limit:
            raise TooLarge(
                f"{field}: with it the request has {total} pixels; the limit is {limit}",
                code="image_too_large",
            )
    return opened


def _take(opened: dict[str, EncodedImage], field: str, data: bytes | str, settings: Settings) -> EncodedImage:
    """Remove an image from ``opened``, so that its memory is free once it is decoded; open it if it is not there."""
    image = opened.pop(field, None)
    return open_image(data, _limits(settings), field=field) if image is None else image


def _limits(settings: Settings) -> DecodeLimits:
    return DecodeLimits(max_pixels=settings.max_pixels, max_chars=settings.max_body_bytes)


def _field_name(field: str, i: int, items: Sequence[object]) -> str:
    """The name of one item in errors, such as `images.0`; a single body, file or shared mask has no number."""
    return f"{field}.{i}" if len(items) > 1 or field in ("images", "masks") else field
