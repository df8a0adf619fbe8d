"""The endpoints that return images or scores.

The function of each makes work of its options, once: it checks them against the operator's limits
and the card, and resolves the model. Its docstring is the description in `/openapi.json`.
"""

import secrets
from collections.abc import Callable
from functools import partial
from itertools import product
from math import prod
from typing import Any, Final

from pydantic import BaseModel

from service.api.message import check_count, parse_as
from service.api.native.answers import (
    ArithmeticAnswer,
    GenerateAnswer,
    InterpolateAnswer,
    ProjectAnswer,
)
from service.api.native.responses import NativeWork, RowWork
from service.api.native.schemas import (
    MAX_FRAMES,
    MAX_PICTURES,
    ArithmeticRequest,
    GenerateRequest,
    InterpolateRequest,
    ProjectOptions,
    ProjectRequest,
    StepOptions,
    UploadOptions,
)
from service.api.native.uploads import (
    Upload,
    check_upload,
    parse_upload,
    read_points,
    upload_work,
)
from service.api.negotiation import PICTURE_TYPES, Json, Media
from service.api.pipeline import InputRows, Stages
from service.api.request import ApiRequest
from service.api.table import Endpoint
from service.artifact.card import Card, Noise
from service.domain.errors import InvalidContent, UnsupportedMedia
from service.domain.latents import (
    MAX_MAGNITUDE,
    FloatRow,
    FloatRows,
    NoiseSource,
    grid_rows,
    is_bounded,
    path_rows,
    weighted_sum,
)
from service.domain.tasks import StepParams
from service.settings import Settings

FORMATS: Final = (Media.JSON, Media.PNG, Media.WEBP, Media.JPEG, Media.NPY, Media.TIFF)
ROW_FORMATS: Final = (*FORMATS, Media.EVENTS)
PATH_FORMATS: Final = (*FORMATS, Media.GIF, Media.APNG)  # for paths only; a grid has no animation
# values; a request with more of them draws its noise in the codec pool
_LARGE_NOISE: Final = 1 << 14
_SEED_BITS: Final = 32


# What makes the work of an endpoint: that of another dialect, if not the native one.
MakeWork = Callable[..., RowWork]


def generate(api: ApiRequest, options: GenerateRequest, make: MakeWork = NativeWork) -> RowWork:
    """Generate images from noise.

    f^k(z): apply f `steps` times to latents `offset` … `offset + n − 1` of a seed. Image i of a
    seed depends on nothing else. `record` returns steps on the way, `tolerance` stops a row that no
    longer changes, `noise_scale` takes more or less noise.

    Several images in one file are a contact sheet, with `columns` and a `gap`. `scale` enlarges
    images in every format.
    """
    settings = api.settings
    check_count("n", options.n, settings.max_images)
    model = api.resolve(options.model)
    noise_of(model.card)
    params = step_params(
        options, recommended=model.card.steps.generate, rows=options.n, settings=settings
    )
    seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
    size = image_size(options, model.card, settings)
    is_tiled = size != model.card.shape[1:]

    def make_rows() -> InputRows:
        noise = NoiseSource((model.card.shape[0], *size))
        rows = noise.rows(seed, options.offset, options.n, options.noise_scale)
        return InputRows(rows=[*rows] if is_tiled else rows)

    return make(
        api=api,
        model=model,
        options=options,
        labels=[{"index": options.offset + i} for i in range(options.n)],
        members={"seed": seed},
        headers=[(b"x-ign-seed", b"%d" % seed)],
        sizes=[size] * options.n,
        is_tiled=is_tiled,
        params=params,
        source=make_rows,
        is_large=is_tiled or options.n * prod(model.card.shape) > _LARGE_NOISE,
    )


def project(api: ApiRequest, upload: Upload, make: MakeWork = NativeWork) -> RowWork:
    """Make images real.

    f^k(x): apply f to images x, which makes drawings, noisy, damaged or half-hidden images look
    like those that the model learned.

    Images are prepared for the model: turned by their EXIF orientation, resized (`resize`), light
    and dark exchanged if needed (`invert`). A `mask` limits the change to its white part;
    `strength` below 1 blends with the input.

    The body is a form, JSON or one image; the options in the query belong to the latter.
    """
    options: ProjectOptions = upload.options
    model = api.resolve(options.model)
    params = step_params(
        options,
        recommended=model.card.steps.project,
        rows=len(upload.images),
        settings=api.settings,
    )
    return upload_work(make, api, model, upload, params, options, strength=options.strength)


def latent_interpolate(api: ApiRequest, options: InterpolateRequest) -> RowWork:
    """Walk between images.

    f^k along a path through 2 to 16 points, or over a grid between four. A point is a seed, an
    image or a latent. A path as GIF, APNG or WebP is an animation, as PNG or JPEG a strip.
    """
    columns = options.frames or 9
    fps = options.fps
    mix: Callable[..., FloatRows] = partial(path_rows, frames=columns, loop=options.loop)
    labels: list[Json] = [{"index": i, "t": i / (columns - 1)} for i in range(columns)]
    if (grid := options.grid) is not None:
        check_count("grid", grid.rows * grid.cols, MAX_FRAMES)
        api.negotiate(FORMATS)
        columns = grid.cols
        fps = 0
        mix = partial(grid_rows, rows=grid.rows, cols=columns)
        places = product(range(grid.rows), range(columns))
        labels = [{"index": i, "row": row, "col": col} for i, (row, col) in enumerate(places)]
    mix = partial(mix, method=options.method)
    return _latent_work(api, options, "points", mix, labels=labels, columns=columns, fps=fps)


def latent_arithmetic(api: ApiRequest, options: ArithmeticRequest) -> RowWork:
    """Add and subtract images.

    f^k of a weighted sum of up to 16 seeds, images or latents: one image.
    """
    noise = noise_of(api.resolve(options.model).card)
    norm = noise.norm if options.normalize else None

    def mix(rows: list[FloatRow]) -> FloatRows:
        try:
            return weighted_sum(rows, [term.weight for term in options.terms], norm)[None]
        except ValueError as exc:
            raise InvalidContent.field("terms", "their sum is zero, which is no latent") from exc

    return _latent_work(api, options, "terms", mix, labels=[{"index": 0}], members={"seed": None})


def _latent_work(
    api: ApiRequest,
    options: ArithmeticRequest | InterpolateRequest,
    field: str,
    mix: Callable[[list[FloatRow]], FloatRows],
    **shown: Any,
) -> RowWork:
    """The work for what ``mix`` makes of the points in a field."""
    model = api.resolve(options.model)
    noise_of(model.card)
    steps = check_steps(
        options.steps,
        recommended=model.card.steps.generate,
        settings=api.settings,
    )

    def make_rows() -> InputRows:
        rows = mix(read_points(api, model, field, getattr(options, field)))
        # Latents within the bound can give a mixture beyond it: by their weights, or on the arc
        # between almost opposite ones.
        if not is_bounded(rows):
            message = f"their mixture holds values beyond ±{MAX_MAGNITUDE:.0f}"
            raise InvalidContent.field(field, message)
        return InputRows(rows=rows)

    return NativeWork(
        api=api,
        model=model,
        options=options,
        params=StepParams(steps=steps),
        source=make_rows,
        is_large=True,
        **shown,
    )


# What the schemas cannot say: limits of the operator and of the model's card
def noise_of(card: Card) -> Noise:
    """The noise of a model; raises `InvalidContent` for one that makes nothing of it."""
    if card.noise is None:
        text = f"{card.ref} makes nothing of noise; send it images, as to /project"
        raise InvalidContent.field("model", text, code="no_noise")
    return card.noise


def image_size(options: GenerateRequest, card: Card, settings: Settings) -> tuple[int, int]:
    """(H, W) of the images: those of the card, unless the model makes any size."""
    _, height, width = card.shape
    size = options.height or height, options.width or width
    if size == (height, width):
        return size
    if card.tiles is None:
        name = "height" if size[0] != height else "width"
        raise InvalidContent.field(name, f"{card.ref} makes images of {width}×{height} pixels only")
    limit = settings.for_images(card.tiles).max_pixels
    if options.n * size[0] * size[1] > limit:
        message = f"n × width × height must be at most {limit} (IGN_MAX_PIXELS)"
        raise InvalidContent.field("width", message, code="image_too_large")
    return size


def step_params(
    options: StepOptions, *, recommended: int, rows: int, settings: Settings
) -> StepParams:
    """Validate the options that say how f is applied, and how many images that gives."""
    steps = check_steps(options.steps, recommended=recommended, settings=settings)
    record = tuple(options.record or ())
    if rows * len(record) > MAX_PICTURES:
        raise InvalidContent.field(
            "record", f"rows × recorded steps must be at most {MAX_PICTURES}"
        )
    # The schema has checked all but the order and the last of the recorded steps.
    if record and ([*record] != sorted(set(record)) or record[-1] > steps):
        raise InvalidContent.field("record", f"must be ascending, each step once, in 0…{steps}")
    return StepParams(steps=steps, tolerance=options.tolerance, record=record, score=options.score)


def check_steps(steps: int | None, *, recommended: int, settings: Settings) -> int:
    """The number of steps: the requested one, or else the recommended one, reduced to the
    operator's limit.
    """
    if steps is None:
        return min(recommended, settings.max_steps)
    check_count("steps", steps, settings.max_steps)
    return steps


def endpoint(
    make: Callable[[ApiRequest, Any], RowWork],
    request: type[BaseModel],
    answer: type[BaseModel] | None,
    formats: tuple[Media, ...],
    options: type[UploadOptions] | None = None,
) -> Endpoint:
    """An endpoint whose name, path and description are those of ``make``, which makes its work.

    Its body is JSON; with ``options``, images may also come in a form, or one as the body.
    """

    def check(api: ApiRequest) -> None:
        api.negotiate(formats)
        if options is not None:
            check_upload(api, options)
            return
        api.reject_query()
        if api.content_type not in ("", "application/json"):
            raise UnsupportedMedia(
                f"Content-Type: expected application/json, not {api.content_type}"
            )

    def parse(api: ApiRequest, body: bytes) -> RowWork:
        if options is not None:
            return make(api, parse_upload(api, options, request, body))
        if body and not api.content_type:  # an empty one counts as `{}`
            raise UnsupportedMedia("Content-Type: expected application/json, not none")
        return make(api, parse_as(request, body))

    parse.__doc__ = make.__doc__
    return Endpoint(
        f"/{make.__name__.replace('_', '-')}",
        Stages(check, parse),
        "Images",
        make.__name__,
        ("POST",),
        request,
        bodies=PICTURE_TYPES if options else (),
        answer=answer,
        formats=formats,
    )


ENDPOINTS: Final = (
    endpoint(generate, GenerateRequest, GenerateAnswer, ROW_FORMATS),
    endpoint(project, ProjectRequest, ProjectAnswer, ROW_FORMATS, ProjectOptions),
    endpoint(latent_interpolate, InterpolateRequest, InterpolateAnswer, PATH_FORMATS),
    endpoint(latent_arithmetic, ArithmeticRequest, ArithmeticAnswer, FORMATS),
)
