"""The native endpoints. Each validates its options and prepares rows; `_serve` runs the model and responds."""

from contextlib import nullcontext
from functools import partial
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.http.disconnect import until_disconnect
from service.api.http.negotiation import Media
from service.api.http.request_context import ApiRequest
from service.api.native import openapi, stages
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
from service.api.native.stages import Work
from service.api.native.uploads import InputRows, PointReader, is_large, prepare_upload, read_upload
from service.api.native.validation import check_mixture, check_steps, latent_path
from service.domain.errors import InvalidContent
from service.domain.interpolation import Grid, LatentPath
from service.domain.latents import weighted_sum
from service.domain.tasks import SchedulingParams, StepParams

router = APIRouter(tags=["Pictures"])

_FORMATS: Final = (Media.JSON, Media.PNG, Media.WEBP, Media.JPEG, Media.NPY)
_PATH_FORMATS: Final = (*_FORMATS, Media.GIF, Media.APNG)  # for paths only; a grid has no animation


@router.post("/generate", **openapi.operation(GenerateRequest, GenerateAnswer, openapi.GENERATE, stages.FORMATS))
async def generate(request: Request) -> Response:
    """Generate pictures: f^k(z) of seeded latents z."""
    api = ApiRequest.of(request)
    media = api.negotiate(stages.FORMATS)
    return await _serve(stages.generate(api, media, await api.read_json(GenerateRequest)))


@router.post("/project", **openapi.operation(ProjectRequest, ProjectAnswer, openapi.PROJECT, stages.FORMATS))
async def project(request: Request) -> Response:
    """Project pictures: f^k(x) of uploads x, as multipart, JSON or a raw body."""
    api = ApiRequest.of(request)
    media = api.negotiate(stages.FORMATS)
    return await _serve(stages.project(api, media, await read_upload(api, ProjectOptions, ProjectRequest)))


@router.post(
    "/latent-interpolate",
    **openapi.operation(InterpolateRequest, InterpolateAnswer, openapi.INTERPOLATE, _PATH_FORMATS),
)
async def latent_interpolate(request: Request) -> Response:
    """Interpolate between latents: f^k along a path, which can be an animation, or over a grid."""
    api = ApiRequest.of(request)
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

    return await _serve(Work(api=api, spec=spec, params=StepParams(steps=steps), make_rows=make_rows, large=True))


@router.post(
    "/latent-arithmetic", **openapi.operation(ArithmeticRequest, ArithmeticAnswer, openapi.ARITHMETIC, _FORMATS)
)
async def latent_arithmetic(request: Request) -> Response:
    """Combine latents: f^k of a weighted sum."""
    api = ApiRequest.of(request)
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

    return await _serve(Work(api=api, spec=spec, params=StepParams(steps=steps), make_rows=make_rows, large=True))


@router.post("/score", **openapi.operation(ScoreRequest, ScoreAnswer, openapi.SCORE, (Media.JSON,)))
async def score(request: Request) -> Response:
    """Score pictures: how far f moves them, compared with held-out real pictures."""
    api = ApiRequest.of(request)
    api.negotiate((Media.JSON,))
    upload = await read_upload(api, ScoreOptions, ScoreRequest)
    model = api.resolve(upload.options.model)
    large = is_large(upload)
    api.state["rows"], api.state["steps"] = len(upload.images), 1

    async def work() -> Response:
        job = partial(prepare_upload, upload, model, api.services.settings, api.check_not_over)
        async with model.scheduler.room_for(len(upload.images), api.deadline) if large else nullcontext():
            inputs = await api.run_codec("decode", job, large=large)
        step_params = StepParams(steps=1, score=True)
        params = SchedulingParams(
            step_params=step_params,
            deadline=api.deadline,
            key=api.caller,
            request_id=api.request_id,
            observer=api.spans,
        )
        return respond_scores(api, model, await model.scheduler.run(inputs.rows, params))

    return await until_disconnect(api.receive, work())


async def _serve(work: Work) -> Response:
    """Make the rows, apply f and respond; a disconnect of the client cancels all of it.

    The codec pool makes rows only for requests that have room in the queue.
    """
    api, spec, scheduler = work.api, work.spec, work.model.scheduler
    api.state["rows"], api.state["steps"] = work.count, work.steps

    async def serve() -> Response:
        if work.large:
            async with scheduler.room_for(work.count, api.deadline):
                inputs = await api.run_codec("decode", work.make_rows, large=True)
        elif work.upload is not None:
            inputs = await api.run_codec("decode", work.make_rows, large=False)
        else:
            inputs = work.make_rows()
        if spec.media is Media.EVENTS:
            return EventStream(api, spec, inputs.rows, work.scheduling(inputs))
        result = await scheduler.run(inputs.rows, work.scheduling(inputs))
        return await respond(api, spec, work.shown(inputs.rows, result))

    return await until_disconnect(api.receive, serve())


def _frame_labels(path: LatentPath | Grid) -> list[dict[str, Any]]:
    if isinstance(path, Grid):
        return [{"index": i, "row": row, "col": col} for i, (row, col) in enumerate(path.coordinates())]
    return [{"index": i, "t": t} for i, t in enumerate(path.times())]
