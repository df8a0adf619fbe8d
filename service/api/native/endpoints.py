"""The endpoints that return images or scores.

The function of each makes work of its options, once: it checks them against the operator's limits
and the card, and resolves the model. Its docstring is the description in `/openapi.json`.
"""

import asyncio
import inspect
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from starlette.types import Send

from service.api.body import parse_as
from service.api.native.responses import (
    INLINE_VALUES,
    RASTER,
    ResponseSpec,
    check_format,
    encode_contents,
    response_bytes,
    response_parts,
    score_content,
    score_response,
)
from service.api.native.schemas import (
    ArithmeticAnswer,
    ArithmeticRequest,
    GenerateAnswer,
    GenerateRequest,
    ImageOptions,
    InterpolateAnswer,
    InterpolateRequest,
    ProjectAnswer,
    ProjectOptions,
    ProjectRequest,
    ScoreAnswer,
    ScoreOptions,
    ScoreRequest,
    check_count,
    check_mixture,
    check_steps,
    image_size,
    latent_path,
    no_noise,
    step_params,
)
from service.api.native.stream import encode_event, send_events
from service.api.native.uploads import (
    InputRows,
    OpenUpload,
    Upload,
    check_upload,
    decode_large,
    decode_small,
    is_small,
    open_upload,
    parse_upload,
    read_points,
)
from service.api.negotiation import PICTURE_TYPES, Json, Media
from service.api.pipeline import LARGE_BODY, PathParameters, Plan, Stages
from service.api.request import ApiRequest, ResponseParts, count_codec, count_rows
from service.api.table import Endpoint
from service.domain.errors import IgnError, InvalidContent, UnsupportedMedia
from service.domain.latents import Grid, LatentPath, NoiseSource, weighted_sum
from service.domain.tasks import (
    Images,
    Result,
    SchedulingParams,
    StepParams,
    blend_result,
    close_loop,
    colour_result,
)
from service.images.pool import CodecThread
from service.models.registry import ServedModel

FORMATS: Final = (Media.JSON, Media.PNG, Media.WEBP, Media.JPEG, Media.NPY, Media.TIFF)
ROW_FORMATS: Final = (*FORMATS, Media.EVENTS)
SCORE_FORMATS: Final = (Media.JSON, Media.PNG)
PATH_FORMATS: Final = (*FORMATS, Media.GIF, Media.APNG)  # for paths only; a grid has no animation
# values; a request with more of them draws its noise in the codec pool
_LARGE_NOISE: Final = 1 << 14
_SEED_BITS: Final = 32


class InPool(NamedTuple):
    """Makes the rows of a request in a thread of the codec pool."""

    make: Callable[[CodecThread], InputRows]


@dataclass(slots=True, kw_only=True, eq=False)
class RowWork(ResponseSpec):
    """What a request asks of a model, after its options are checked; ``source`` is the upload, or
    makes the rows.
    """

    params: StepParams
    source: Upload[Any] | InPool | Callable[[], InputRows]
    is_large: bool  # decode it in the codec pool

    plan: Plan | None = field(init=False, default=None)
    opened: OpenUpload | None = field(init=False, default=None)
    has_large_response: bool = field(init=False)  # the codec pool encodes the response

    def __post_init__(self) -> None:
        self.media = self.api.media
        source = self.source
        if not isinstance(source, Upload) or not (self.is_tiled or source.must_open):
            self._make_plan()

    def open(self, thread: CodecThread) -> None:
        """Read the headers of the uploaded images, and plan the request."""
        assert isinstance(self.source, Upload)  # noqa: S101 - nothing else is planned late
        self.opened = open_upload(thread, self.api, self.source, self.model.card)
        images = self.opened.images
        self.labels = [{"index": index} for index in range(len(images))]
        if self.is_tiled:
            self.sizes = [image.size for image in images]
        self._make_plan()

    def _make_plan(self) -> None:
        record = self.params.record
        options = self.options
        values = self.values
        check_format(self, record)
        is_repeated = self.params.steps > 1 or self.params.score
        held = response_bytes(self, values, len(record), is_repeated=is_repeated)
        is_slow = (self.fps and self.is_animation) or (options.gap > 0 and self.media in RASTER)
        is_large = values * options.scale**2 > INLINE_VALUES
        self.has_large_response = bool(is_large or record or is_slow or self.is_tiled)
        rows = len(self.labels) - self.closed  # the repeated image of a loop is not run again
        if self.is_tiled:
            tiles = self.model.plan_tiles(self.sizes)
            rows = tiles.rows
            held += tiles.bytes
        self.plan = Plan(rows=rows, steps=self.params.steps, bytes=held)

    def scheduling(self, inputs: InputRows) -> SchedulingParams:
        """The request as the scheduler sees it."""
        api = self.api
        return SchedulingParams(
            step_params=self.params,
            keep_mask=None if isinstance(inputs.keep, list) else inputs.keep,
            deadline=api.deadline,
            key=api.caller,
            streamed=self.media is Media.EVENTS,
            stream_deadline=api.stream_deadline if self.media is Media.EVENTS else None,
            request_id=api.request_id,
            observer=api.spans,
        )

    async def run_tiles(
        self, inputs: InputRows, on_event: Callable[[Any], None] = lambda _: None
    ) -> Result:
        """Run the tiles of images; ``on_event`` gets what a stream sends before the result."""
        masks = None if inputs.keep is None else [*inputs.keep]
        params = partial(self.scheduling, inputs)
        return await self.model.run_tiles(
            [*inputs.rows], masks, params, self.api.run_codec, on_event
        )

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        return exc

    async def send_events(
        self, inputs: InputRows, events: "asyncio.Queue[Any]", send: Send
    ) -> bytes:
        """Send the events of a stream; returns its last piece."""
        encode = partial(encode_event, self, inputs.rows)
        return await send_events(self, events, send, encode)

    def shown(self, rows: Images, result: Result) -> Result:
        """The result as the caller is shown it."""
        if self.strength != 1.0:
            result = blend_result(rows, result, self.strength)
        if self.chroma:
            result = colour_result(result, self.chroma)
        return close_loop(result) if self.closed else result


def generate(api: ApiRequest, options: GenerateRequest) -> RowWork:
    """Generate images from noise.

    f^k(z): apply f `steps` times to latents `offset` … `offset + n − 1` of a seed. Image i of a
    seed depends on nothing else. `record` returns steps on the way, `tolerance` stops a row that no
    longer changes, `noise_scale` takes more or less noise.

    Several images in one file are a contact sheet, with `columns` and a `gap`. `scale` enlarges
    images in every format.
    """
    settings = api.services.settings
    check_count("n", options.n, settings.max_images)
    model = api.resolve(options.model)
    if model.card.noise is None:
        raise no_noise(model.card)
    params = step_params(
        options, recommended=model.card.steps.generate, rows=options.n, settings=settings
    )
    seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
    labels = [{"index": options.offset + i} for i in range(options.n)]
    size = image_size(options, model.card, settings)
    sizes = [] if size is None else [size] * options.n

    def make_rows() -> InputRows:
        noise = model.noise if size is None else NoiseSource((model.card.shape[0], *size))
        rows = noise.rows(seed, options.offset, options.n, options.noise_scale)
        return InputRows(rows=[*rows] if sizes else rows)

    channels, height, width = model.card.shape
    large = bool(sizes) or options.n * channels * height * width > _LARGE_NOISE
    return RowWork(
        api=api,
        model=model,
        options=options,
        labels=labels,
        members={"seed": seed},
        sizes=sizes,
        is_tiled=bool(sizes),
        params=params,
        source=make_rows,
        is_large=large,
    )


def project(api: ApiRequest, upload: Upload[ProjectOptions]) -> RowWork:
    """Make images real.

    f^k(x): apply f to images x, which makes drawings, noisy, damaged or half-hidden images look
    like those that the model learned.

    Images are prepared for the model: turned by their EXIF orientation, resized (`resize`), light
    and dark exchanged if needed (`invert`). A `mask` limits the change to its white part;
    `strength` below 1 blends with the input.

    The body is a form, JSON or one image; the options in the query belong to the latter.
    """
    options = upload.options
    settings = api.services.settings
    count = len(upload.images)
    model = api.resolve(options.model)
    params = step_params(
        options, recommended=model.card.steps.project, rows=count, settings=settings
    )
    return _upload_work(api, model, upload, params, options, strength=options.strength)


def score(api: ApiRequest, upload: Upload[ScoreOptions]) -> RowWork:
    """Measure how real images look to the model.

    How far f moves each image (`distance`), and how that compares with held-out real images
    (`percentile`, `in_distribution`). A large distance marks outliers, changed data or a wrong
    polarity. No image is returned.
    """
    model = api.resolve(upload.options.model)
    return _upload_work(
        api, model, upload, StepParams(steps=1, score=True), ImageOptions(), shows_change=True
    )


def _upload_work(
    api: ApiRequest,
    model: ServedModel,
    upload: Upload[Any],
    params: StepParams,
    options: ImageOptions,
    *,
    strength: float = 1.0,
    shows_change: bool = False,
) -> RowWork:
    labels: list[Json] = [{"index": i} for i in range(len(upload.images))]
    return RowWork(
        api=api,
        model=model,
        options=options,
        labels=labels,
        strength=strength,
        shows_change=shows_change,
        is_tiled=model.card.tiles is not None,
        params=params,
        source=upload,
        is_large=not is_small(upload, model.card),
    )


def latent_interpolate(api: ApiRequest, options: InterpolateRequest) -> RowWork:
    """Walk between images.

    f^k along a path through 2 to 16 points, or over a grid between four. A point is a seed, an
    image or a latent. A path as GIF, APNG or WebP is an animation, as PNG or JPEG a strip.
    """
    path = latent_path(options)
    settings = api.services.settings
    if isinstance(path, Grid):
        api.media = api.negotiate(FORMATS)
    model = api.resolve(options.model)
    if model.card.noise is None:
        raise no_noise(model.card)
    steps = check_steps(options.steps, recommended=model.card.steps.generate, settings=settings)

    def make_rows(thread: CodecThread) -> InputRows:
        points = read_points(thread, api, model, "points", options.points)
        rows = path.latents(points) if isinstance(path, Grid) else path.rows(points)
        return InputRows(rows=check_mixture("points", rows))

    return RowWork(
        api=api,
        model=model,
        options=options,
        labels=_frame_labels(path),
        columns=path.cols if isinstance(path, Grid) else path.frames,
        fps=0 if isinstance(path, Grid) else options.fps,
        closed=isinstance(path, LatentPath) and path.loop,
        params=StepParams(steps=steps),
        source=InPool(make_rows),
        is_large=True,
    )


def latent_arithmetic(api: ApiRequest, options: ArithmeticRequest) -> RowWork:
    """Add and subtract images.

    f^k of a weighted sum of up to 16 seeds, images or latents: one image.
    """
    settings = api.services.settings
    model = api.resolve(options.model)
    noise = model.card.noise
    if noise is None:
        raise no_noise(model.card)
    steps = check_steps(options.steps, recommended=model.card.steps.generate, settings=settings)

    def make_rows(thread: CodecThread) -> InputRows:
        rows = read_points(thread, api, model, "terms", options.terms)
        norm = noise.norm if options.normalize else None
        try:
            mixture = weighted_sum(rows, [term.weight for term in options.terms], norm)[None]
        except ValueError as exc:
            raise InvalidContent.field("terms", "their sum is zero, which is no latent") from exc
        return InputRows(rows=check_mixture("terms", mixture))

    return RowWork(
        api=api,
        model=model,
        options=options,
        labels=[{"index": 0}],
        members={"seed": None},
        params=StepParams(steps=steps),
        source=InPool(make_rows),
        is_large=True,
    )


def _decode(works: Sequence[RowWork]) -> list[InputRows | IgnError]:
    """The input rows of small requests, or why one has none; uploads to the same model are prepared
    together.
    """
    together: dict[ServedModel, dict[RowWork, Upload[Any]]] = {}
    made: dict[RowWork, InputRows | IgnError] = {}
    start = time.perf_counter()
    for work in works:
        if isinstance(work.source, Upload):
            together.setdefault(work.model, {})[work] = work.source
    for model, uploads in together.items():
        made |= zip(uploads, decode_small([*uploads.values()], model.card), strict=True)
    if made:
        count_codec("decode", [work.api for work in made], start)
    for work, inputs in made.items():
        if isinstance(inputs, InputRows):
            _label(work, inputs)
    return [work.source() if callable(work.source) else made[work] for work in works]


def _decode_large(work: RowWork, thread: CodecThread) -> InputRows:
    """The input rows of one request."""
    source = work.source
    if isinstance(source, InPool):
        return source.make(thread)
    if not isinstance(source, Upload):
        return source()
    opened = work.opened or open_upload(thread, work.api, source, work.model.card)
    inputs = decode_large(thread, work.api, source, opened, work.model.card)
    _label(work, inputs)
    return inputs


def _label(work: RowWork, inputs: InputRows) -> None:
    for label, inverted in zip(work.labels, inputs.inverted, strict=True):
        label["inverted"] = inverted
    work.chroma[:] = inputs.chroma


Encoded = tuple[Result, list[bytes]]


def _encode(ended: Sequence[tuple[RowWork, Images, Result]]) -> list[Encoded]:
    """Results as they are shown, and their images; those of the same model are encoded together."""
    works = [work for work, _, _ in ended]
    results = [work.shown(rows, result) for work, rows, result in ended]
    start = time.perf_counter()
    contents = encode_contents(list(zip(works, results, strict=True)))
    if not works[0].has_large_response:  # the codec pool counts by itself
        count_codec("encode", [work.api for work in works], start)
    return list(zip(results, contents, strict=True))


def respond_rows(ended: Sequence[tuple[RowWork, Encoded]]) -> list[ResponseParts]:
    """Responses whose images `_encode` has made."""
    count_rows([(work.api, work.model, result) for work, (result, _) in ended])
    return [response_parts(work, result, content) for work, (result, content) in ended]


def _encode_scores(ended: Sequence[tuple[RowWork, Images, Result]]) -> list[tuple[Result, Any]]:
    return [(result, score_content(work, rows, result)) for work, rows, result in ended]


def _respond_scores(ended: Sequence[tuple[RowWork, tuple[Result, Any]]]) -> list[ResponseParts]:
    count_rows([(work.api, work.model, result) for work, (result, _) in ended])
    return [score_response(work, result, content) for work, (result, content) in ended]


def _frame_labels(path: LatentPath | Grid) -> list[Json]:
    if isinstance(path, Grid):
        return [
            {"index": i, "row": row, "col": col} for i, (row, col) in enumerate(path.coordinates())
        ]
    return [{"index": i, "t": t} for i, t in enumerate(path.times())]


def _is_large_body(api: ApiRequest, body: bytes) -> bool:
    # one image, which is not parsed
    return len(body) > LARGE_BODY and api.content_type not in PICTURE_TYPES


def row_stages(
    check: Callable[[ApiRequest], None],
    parse: Callable[[ApiRequest, bytes, PathParameters], RowWork],
    encode: Callable[[Sequence[Any]], Sequence[Any]] = _encode,
    respond: Callable[[Sequence[Any]], list[ResponseParts]] = respond_rows,
) -> Stages:
    """Stages of `RowWork`."""
    return Stages(check, _is_large_body, parse, _decode, _decode_large, encode, respond)


def _endpoint(
    make: Callable[[ApiRequest, Any], RowWork],
    request: type[BaseModel],
    answer: type[BaseModel],
    formats: tuple[Media, ...],
    options: type[ScoreOptions] | None = None,
    **stages: Any,
) -> Endpoint:
    """An endpoint whose body is JSON; with ``options``, images may also come in a form, or one as
    the body.
    """

    def check(api: ApiRequest) -> None:
        api.media = api.negotiate(formats)
        if options is not None:
            check_upload(api, options)
            return
        api.reject_query()
        if api.content_type not in ("", "application/json"):
            raise UnsupportedMedia(
                f"Content-Type: expected application/json, not {api.content_type}"
            )

    def parse(api: ApiRequest, body: bytes, _: PathParameters) -> RowWork:
        if options is not None:
            return make(api, parse_upload(api, options, request, body))
        if body and not api.content_type:  # an empty one counts as `{}`
            raise UnsupportedMedia("Content-Type: expected application/json, not none")
        return make(api, parse_as(request, body))

    return Endpoint(
        f"/{make.__name__.replace('_', '-')}",
        row_stages(check, parse, **stages),
        "Images",
        make.__name__,
        ("POST",),
        request,
        bodies=PICTURE_TYPES if options else (),
        answer=answer,
        formats=formats,
        text=inspect.getdoc(make) or "",
        is_upload=options is not None,
    )


_SCORES: Final = {"encode": _encode_scores, "respond": _respond_scores}
ENDPOINTS: Final = (
    _endpoint(generate, GenerateRequest, GenerateAnswer, ROW_FORMATS),
    _endpoint(project, ProjectRequest, ProjectAnswer, ROW_FORMATS, ProjectOptions),
    _endpoint(latent_interpolate, InterpolateRequest, InterpolateAnswer, PATH_FORMATS),
    _endpoint(latent_arithmetic, ArithmeticRequest, ArithmeticAnswer, FORMATS),
    _endpoint(score, ScoreRequest, ScoreAnswer, SCORE_FORMATS, ScoreOptions, **_SCORES),
)
