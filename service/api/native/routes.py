"""The native endpoints. Each validates its options and prepares rows; `_serve` runs the model and responds."""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.http.disconnect import until_disconnect
from service.api.http.negotiation import Media
from service.api.http.request_context import ApiRequest
from service.api.native import openapi
from service.api.native.responses import ResponseSpec, check_format, respond, respond_scores
from service.api.native.schemas import (
    ArithmeticAnswer,
    ArithmeticRequest,
    GenerateAnswer,
    GenerateRequest,
    InterpolateAnswer,
    InterpolateRequest,
    ProjectAnswer,
    ProjectOptions,
    ProjectRequest,
    ScoreAnswer,
    ScoreOptions,
    ScoreRequest,
)
from service.api.native.sse import EventStream
from service.api.native.uploads import InputRows, PointReader, is_large, prepare_upload, read_upload
from service.api.native.validation import check_count, check_mixture, check_steps, latent_path, step_params
from service.domain.blending import blend_result, close_loop
from service.domain.errors import InvalidContent
from service.domain.interpolation import Grid, LatentPath
from service.domain.latents import weighted_sum
from service.domain.tasks import SchedulingParams, StepParams
from service.models.registry import ServedModel

router = APIRouter(tags=["Pictures"])

_FORMATS: Final = (Media.JSON, Media.PNG, Media.WEBP, Media.JPEG, Media.NPY)
_STREAM_FORMATS: Final = (*_FORMATS, Media.EVENTS)
_PATH_FORMATS: Final = (*_FORMATS, Media.GIF, Media.APNG)  # for paths only; a grid has no animation
_LARGE_NOISE: Final = 1 << 14  # values; a request with more of them draws its noise in the codec pool
_SEED_BITS: Final = 32

MakeRows = Callable[[], InputRows]


@router.post("/generate", **openapi.operation(GenerateRequest, GenerateAnswer, openapi.GENERATE, _STREAM_FORMATS))
async def generate(request: Request) -> Response:
    """Generate pictures: f^k(z) of seeded latents z."""
    api = ApiRequest(request)
    media = api.negotiate(_STREAM_FORMATS)
    options = await api.read_json(GenerateRequest)
    settings = api.services.settings
    check_count("n", options.n, settings.max_images)
    model = api.resolve(options.model)
    params = step_params(options, recommended=model.card.steps.generate, rows=options.n, settings=settings)
    seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
    labels = [{"index": options.offset + i} for i in range(options.n)]
    spec = ResponseSpec(model=model, media=media, options=options, labels=labels, members={"seed": seed})
    check_format(api, spec, params.record)
    channels, height, width = model.card.shape
    large = options.n * channels * height * width > _LARGE_NOISE
    make_rows = partial(_noise_rows, model, options, seed)
    return await _serve(api, spec, make_rows if large else make_rows(), params, large=large)


@router.post("/project", **openapi.operation(ProjectRequest, ProjectAnswer, openapi.PROJECT, _STREAM_FORMATS))
async def project(request: Request) -> Response:
    """Project pictures: f^k(x) of uploads x, as multipart, JSON or a raw body."""
    api = ApiRequest(request)
    media = api.negotiate(_STREAM_FORMATS)
    upload = await read_upload(api, ProjectOptions, ProjectRequest)
    options, settings = upload.options, api.services.settings
    model = api.resolve(options.model)
    count = len(upload.images)
    params = step_params(options, recommended=model.card.steps.project, rows=count, settings=settings)
    labels: list[dict[str, Any]] = [{"index": i} for i in range(count)]
    spec = ResponseSpec(model=model, media=media, options=options, labels=labels, strength=options.strength)
    check_format(api, spec, params.record)

    def make_rows() -> InputRows:
        inputs = prepare_upload(upload, model, settings, api.check_not_over)
        for label, inverted in zip(labels, inputs.inverted, strict=True):
            label["inverted"] = inverted
        return inputs

    return await _serve(api, spec, make_rows, params, large=is_large(upload))


@router.post(
    "/latent-interpolate",
    **openapi.operation(InterpolateRequest, InterpolateAnswer, openapi.INTERPOLATE, _PATH_FORMATS),
)
async def latent_interpolate(request: Request) -> Response:
    """Interpolate between latents: f^k along a path, which can be an animation, or over a grid."""
    api = ApiRequest(request)
    media = api.negotiate(_PATH_FORMATS)
    options = await api.read_json(InterpolateRequest)
    path, settings = latent_path(options), api.services.settings
    if isinstance(path, Grid):
        media = api.negotiate(_FORMATS)
    model = api.resolve(options.model)
    steps = check_steps(options.steps, recommended=model.card.steps.generate, settings=settings)
    spec = ResponseSpec(
        model=model,
        media=media,
        options=options,
        labels=_frame_labels(path),
        columns=path.cols if isinstance(path, Grid) else path.frames,
        fps=0 if isinstance(path, Grid) else options.fps,
        closed=isinstance(path, LatentPath) and path.loop,
    )
    check_format(api, spec)
    reader = PointReader(model, settings, api.check_not_over)

    def make_rows() -> InputRows:
        points = reader.rows("points", options.points)
        rows = path.latents(points) if isinstance(path, Grid) else path.rows(points)
        return InputRows(rows=check_mixture("points", rows))

    return await _serve(api, spec, make_rows, StepParams(steps=steps), large=True)


@router.post(
    "/latent-arithmetic", **openapi.operation(ArithmeticRequest, ArithmeticAnswer, openapi.ARITHMETIC, _FORMATS)
)
async def latent_arithmetic(request: Request) -> Response:
    """Combine latents: f^k of a weighted sum."""
    api = ApiRequest(request)
    media = api.negotiate(_FORMATS)
    options, settings = await api.read_json(ArithmeticRequest), api.services.settings
    model = api.resolve(options.model)
    steps = check_steps(options.steps, recommended=model.card.steps.generate, settings=settings)
    spec = ResponseSpec(model=model, media=media, options=options, labels=[{"index": 0}], members={"seed": None})
    check_format(api, spec)
    reader = PointReader(model, settings, api.check_not_over)

    def make_rows() -> InputRows:
        rows = reader.rows("terms", options.terms)
        norm = model.card.noise.norm if options.normalize else None
        try:
            mixture = weighted_sum(rows, [term.weight for term in options.terms], norm)[None]
        except ValueError as exc:
            raise InvalidContent.field("terms", "their sum is zero, which is no latent") from exc
        return InputRows(rows=check_mixture("terms", mixture))

    return await _serve(api, spec, make_rows, StepParams(steps=steps), large=True)


@router.post("/score", **openapi.operation(ScoreRequest, ScoreAnswer, openapi.SCORE, (Media.JSON,)))
async def score(request: Request) -> Response:
    """Score pictures: how far f moves them, compared with held-out real pictures."""
    api = ApiRequest(request)
    api.negotiate((Media.JSON,))
    upload = await read_upload(api, ScoreOptions, ScoreRequest)
    model = api.resolve(upload.options.model)
    large = is_large(upload)
    api.state["rows"], api.state["steps"] = len(upload.images), 1
    if large:
        await model.scheduler.check_capacity(len(upload.images))

    async def work() -> Response:
        job = partial(prepare_upload, upload, model, api.services.settings, api.check_not_over)
        inputs = await api.run_codec("decode", job, large=large)
        step_params = StepParams(steps=1, score=True)
        params = SchedulingParams(
            step_params=step_params,
            deadline=api.deadline,
            key=api.caller,
            request_id=api.request_id,
            observer=api.spans,
        )
        return respond_scores(api, model, await model.scheduler.submit(inputs.rows, params))

    return await until_disconnect(request.receive, work())


async def _serve(
    api: ApiRequest, spec: ResponseSpec, inputs: InputRows | MakeRows, params: StepParams, *, large: bool
) -> Response:
    """Make the rows, apply f and respond; a disconnect of the client cancels all of it.

    Args:
        api: the request.
        spec: of the response.
        inputs: the rows, or a codec job that makes them.
        params: how f is applied.
        large: run the job in the codec pool, after a check that the queue has room for its rows. Without the check
            the service would decode large pictures and then reject them.
    """
    scheduler = spec.model.scheduler
    count = len(spec.labels) - spec.closed  # the repeated picture of a loop is not run again
    api.state["rows"], api.state["steps"] = count, params.steps
    if large:
        await scheduler.check_capacity(count)

    async def work() -> Response:
        prepared = inputs if isinstance(inputs, InputRows) else await api.run_codec("decode", inputs, large=large)
        rows = prepared.rows
        scheduling = SchedulingParams(
            step_params=params,
            keep_mask=prepared.keep,
            deadline=api.deadline,
            key=api.caller,
            progress=spec.media is Media.EVENTS,
            request_id=api.request_id,
            observer=api.spans,
        )
        if spec.media is Media.EVENTS:
            return EventStream(api, spec, rows, scheduling)
        result = await scheduler.submit(rows, scheduling)
        if spec.strength != 1.0:
            result = blend_result(rows, result, spec.strength)
        if spec.closed:
            result = close_loop(result)
        return await respond(api, spec, result)

    return await until_disconnect(api.request.receive, work())


def _noise_rows(model: ServedModel, options: GenerateRequest, seed: int) -> InputRows:
    return InputRows(rows=model.noise.rows(seed, options.offset, options.n, options.noise_scale))


def _frame_labels(path: LatentPath | Grid) -> list[dict[str, Any]]:
    if isinstance(path, Grid):
        return [{"index": i, "row": row, "col": col} for i, (row, col) in enumerate(path.coordinates())]
    return [{"index": i, "t": t} for i, t in enumerate(path.times())]
