"""The native endpoints. Each makes rows; the rest is shared."""

import secrets
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.http.disconnect import until_disconnect
from service.api.http.negotiation import Media
from service.api.http.request_context import ApiRequest
from service.api.native import openapi
from service.api.native.limits import check_count, checked_steps, path_of, step_params
from service.api.native.responses import ResponseSpec, answer, check_form, scores
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
from service.api.native.uploads import is_large, prepare_upload, read_upload, resolve_points
from service.domain.errors import InvalidContent
from service.domain.interpolation import Grid, LatentPath
from service.domain.tasks import StepParams
from service.images import DecodeLimits
from service.models.engine import Batch

router = APIRouter(tags=["Pictures"])

_FORMS = (Media.JSON, Media.PNG, Media.WEBP, Media.JPEG, Media.NPY)
_STREAMED = (*_FORMS, Media.EVENTS)
_PATH_FORMS = (*_FORMS, Media.GIF, Media.APNG)  # a grid has no animation
_LARGE_NOISE = 1 << 14  # values: more are drawn in the codec pool
_SEED_BITS = 32


@router.post("/generate", **openapi.operation(GenerateRequest, GenerateAnswer, openapi.GENERATE, _STREAMED))
async def generate(request: Request) -> Response:
    """Generate pictures: f^k(z) of seeded latents."""
    exchange = ApiRequest(request)
    media = exchange.accept(_STREAMED)
    options = await exchange.json(GenerateRequest)
    settings = exchange.services.settings
    check_count("n", options.n, settings.max_images)
    model = exchange.model(options.model)
    how = step_params(options, recommended=model.card.steps.generate, rows=options.n, settings=settings)
    seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
    labels = [{"index": options.offset + i} for i in range(options.n)]
    shape = ResponseSpec(model=model, media=media, format=options.format, labels=labels, members={"seed": seed})
    check_form(shape, how.record)
    channels, height, width = model.card.shape

    def rows() -> Batch:
        return exchange.services.engine.generate(
            model, seed=seed, offset=options.offset, n=options.n, noise_scale=options.noise_scale, step_params=how
        )

    large = options.n * channels * height * width > _LARGE_NOISE
    return await _serve(exchange, shape, rows, large=large)


@router.post("/project", **openapi.operation(ProjectRequest, ProjectAnswer, openapi.PROJECT, _STREAMED))
async def project(request: Request) -> Response:
    """Make pictures real: f^k(x) of uploads, as multipart, JSON or a raw body."""
    exchange = ApiRequest(request)
    media = exchange.accept(_STREAMED)
    upload = await read_upload(exchange, ProjectOptions, ProjectRequest)
    options, settings = upload.options, exchange.services.settings
    model = exchange.model(options.model)
    count = len(upload.images)
    how = step_params(options, recommended=model.card.steps.project, rows=count, settings=settings)
    limits = DecodeLimits(max_pixels=settings.max_pixels)

    def rows() -> Batch:
        prepared = prepare_upload(upload, model, limits, settings.max_body_bytes)
        for label, inverted in zip(labels, prepared.inverted, strict=True):
            label["inverted"] = inverted
        return Batch(rows=prepared.rows, step_params=how, keep=prepared.keep, strength=options.strength)

    labels: list[dict[str, Any]] = [{"index": i} for i in range(count)]
    shape = ResponseSpec(model=model, media=media, format=options.format, labels=labels)
    check_form(shape, how.record)
    return await _serve(exchange, shape, rows, large=is_large(upload))


@router.post(
    "/latent-interpolate", **openapi.operation(InterpolateRequest, InterpolateAnswer, openapi.INTERPOLATE, _PATH_FORMS)
)
async def latent_interpolate(request: Request) -> Response:
    """Walk between latents: f^k along a path or over a grid; as WebP, GIF or APNG an animation."""
    exchange = ApiRequest(request)
    media = exchange.accept(_PATH_FORMS)
    options = await exchange.json(InterpolateRequest)
    path, settings = path_of(options), exchange.services.settings
    if isinstance(path, Grid):
        media = exchange.accept(_FORMS)
    model = exchange.model(options.model)
    steps = checked_steps(options.steps, recommended=model.card.steps.generate, settings=settings)
    limits = DecodeLimits(max_pixels=settings.max_pixels)

    def rows() -> Batch:
        points = resolve_points(options.points, model, limits, settings.max_body_bytes)
        return exchange.services.engine.interpolate(model, points, path, StepParams(steps=steps))

    shape = ResponseSpec(
        model=model,
        media=media,
        format=options.format,
        labels=_frame_labels(path),
        layout="sheet" if isinstance(path, Grid) else "strip",
        columns=path.cols if isinstance(path, Grid) else None,
        fps=0 if isinstance(path, Grid) else options.fps,
        closed=not isinstance(path, Grid) and path.loop,
    )
    check_form(shape)
    return await _serve(exchange, shape, rows, large=True)


@router.post("/latent-arithmetic", **openapi.operation(ArithmeticRequest, ArithmeticAnswer, openapi.ARITHMETIC, _FORMS))
async def latent_arithmetic(request: Request) -> Response:
    """Add latents: f^k of a weighted sum."""
    exchange = ApiRequest(request)
    media = exchange.accept(_FORMS)
    options, settings = await exchange.json(ArithmeticRequest), exchange.services.settings
    model = exchange.model(options.model)
    steps = checked_steps(options.steps, recommended=model.card.steps.generate, settings=settings)
    limits = DecodeLimits(max_pixels=settings.max_pixels)

    def rows() -> Batch:
        terms = options.terms
        points = resolve_points(terms, model, limits, settings.max_body_bytes, name="terms")
        weights = [term.weight for term in terms]
        try:
            return exchange.services.engine.combine(model, points, weights, options.normalize, StepParams(steps=steps))
        except ValueError as exc:
            raise InvalidContent.field("terms", "their sum is zero, which is no latent") from exc

    members = {"seed": None}
    shape = ResponseSpec(model=model, media=media, format=options.format, labels=[{"index": 0}], members=members)
    return await _serve(exchange, shape, rows, large=True)


@router.post("/score", **openapi.operation(ScoreRequest, ScoreAnswer, openapi.SCORE, (Media.JSON,)))
async def score(request: Request) -> Response:
    """Say how real pictures look to the model: how far f moves them, beside held-out real ones."""
    exchange = ApiRequest(request)
    exchange.accept((Media.JSON,))
    upload = await read_upload(exchange, ScoreOptions, ScoreRequest)
    model, settings = exchange.model(upload.options.model), exchange.services.settings
    limits = DecodeLimits(max_pixels=settings.max_pixels)

    def rows() -> Batch:
        prepared = prepare_upload(upload, model, limits, settings.max_body_bytes)
        return Batch(rows=prepared.rows, step_params=StepParams(steps=1, score=True))

    exchange.services.engine.check_capacity(model, len(upload.images))

    async def work() -> Response:
        batch = await exchange.aside(rows, large=is_large(upload))
        return scores(exchange, model, await exchange.services.engine.run(model, batch, exchange.call))

    return await until_disconnect(request.receive, work())


def _frame_labels(path: LatentPath | Grid) -> list[dict[str, Any]]:
    if isinstance(path, Grid):
        return [{"index": i, "row": row, "col": col} for i, (row, col) in enumerate(path.places())]
    return [{"index": i, "t": t} for i, t in enumerate(path.times())]


async def _serve(exchange: ApiRequest, shape: ResponseSpec, rows: Callable[[], Batch], *, large: bool) -> Response:
    """Make the rows, apply f, answer; all of it ends when the client leaves."""
    exchange.services.engine.check_capacity(shape.model, shape.rows)

    async def work() -> Response:
        batch = await exchange.aside(rows, large=large)
        if shape.media is Media.EVENTS:
            return EventStream(exchange, shape, batch)
        result = await exchange.services.engine.run(shape.model, batch, exchange.call)
        return await answer(exchange, shape, result)

    return await until_disconnect(exchange.request.receive, work())
