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


@router.post("/generate", **openapi.operation(GenerateAnswer, stages.FORMATS))
async def generate(body: GenerateRequest) -> Any:
    """Generate pictures from noise.

    f^k(z): apply f `steps` times to latents `offset` … `offset + n − 1` of a seed. Picture i of a seed depends on
    nothing else. `record` returns steps on the way, `tolerance` stops a row that no longer changes, `noise_scale` takes
    more or less noise.

    Several pictures in one file are a contact sheet, with `columns` and a `gap`. `scale` enlarges pictures in every
    format.
    """


@router.post("/project", **openapi.operation(ProjectAnswer, stages.FORMATS, ProjectRequest))
async def project(body: ProjectRequest) -> Any:
    """Make pictures real.

    f^k(x): apply f to pictures x, which makes drawings, noisy, damaged or half-hidden pictures look like those that the
    model learned.

    Pictures are prepared for the model: turned by their EXIF orientation, resized (`resize`), light and dark exchanged
    if needed (`invert`). A `mask` limits the change to its white part; `strength` below 1 blends with the input.

    The body is a form, JSON or one picture; the options in the query belong to the latter.
    """


@router.post("/latent-interpolate", **openapi.operation(InterpolateAnswer, _PATH_FORMATS))
async def latent_interpolate(body: InterpolateRequest) -> Any:
    """Walk between pictures.

    f^k along a path through 2 to 16 points, or over a grid between four. A point is a seed, a picture or a latent. A
    path as GIF, APNG or WebP is an animation, as PNG or JPEG a strip.
    """


@router.post("/latent-arithmetic", **openapi.operation(ArithmeticAnswer, _FORMATS))
async def latent_arithmetic(body: ArithmeticRequest) -> Any:
    """Add and subtract pictures.

    f^k of a weighted sum of up to 16 seeds, pictures or latents: one picture.
    """


@router.post("/score", **openapi.operation(ScoreAnswer, (Media.JSON,), ScoreRequest))
async def score(body: ScoreRequest) -> Any:
    """Measure how real pictures look to the model.

    How far f moves each picture (`distance`), and how that compares with held-out real pictures (`percentile`,
    `in_distribution`). A large distance marks outliers, changed data or a wrong polarity. No picture is returned.
    """


async def _serve_generate(request: Request) -> Response:
    api = ApiRequest.of(request)
    media = api.negotiate(stages.FORMATS)
    return await _serve(stages.generate(api, media, await api.read_json(GenerateRequest)))


async def _serve_project(request: Request) -> Response:
    api = ApiRequest.of(request)
    media = api.negotiate(stages.FORMATS)
    return await _serve(stages.project(api, media, await read_upload(api, ProjectOptions, ProjectRequest)))


async def _serve_latent_interpolate(request: Request) -> Response:
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


async def _serve_latent_arithmetic(request: Request) -> Response:
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


async def _serve_score(request: Request) -> Response:
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
        return respond_scores(api, model, await model.scheduler.submit(inputs.rows, params))

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
        result = await scheduler.submit(inputs.rows, work.scheduling(inputs))
        return await respond(api, spec, work.shown(inputs.rows, result))

    return await until_disconnect(api.receive, serve())


def _frame_labels(path: LatentPath | Grid) -> list[dict[str, Any]]:
    if isinstance(path, Grid):
        return [{"index": i, "row": row, "col": col} for i, (row, col) in enumerate(path.coordinates())]
    return [{"index": i, "t": t} for i, t in enumerate(path.times())]


HANDLERS: Final[dict[Any, Any]] = {
    generate: _serve_generate,
    project: _serve_project,
    latent_interpolate: _serve_latent_interpolate,
    latent_arithmetic: _serve_latent_arithmetic,
    score: _serve_score,
}
"""What answers the declared endpoints."""
