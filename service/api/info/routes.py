"""`/models`, `/healthz`, `/readyz` and `/metrics`."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.api.app_state import app_state
from service.api.native.validation import MAX_FRAMES
from service.api.negotiation import Json
from service.artifact.card import Card
from service.models.registry import ServedModel

router = APIRouter(tags=["Service"])


class Reproducible(BaseModel):
    """Whether a row has the same bits in every batch: `exact`, or `close` with the largest difference seen."""

    kind: Literal["exact", "close"]
    difference: float


class ServedCard(Card):
    """A model card, and the device that runs the model."""

    digest: str
    device: str
    provider: str
    fallback_reason: str | None = None
    reproducible: Reproducible


class Limits(BaseModel):
    """Limits of one request."""

    n: int
    images: int
    steps: int
    frames: int
    body_bytes: int
    pixels: int


class LoadFailure(BaseModel):
    """A version that failed to load. If the version serves, it serves from earlier files."""

    name: str
    version: str
    reason: str


class ModelList(BaseModel):
    """All loaded models."""

    models: Annotated[list[Json], Field(description="Cards without their arrays.")]
    failures: Annotated[
        list[LoadFailure], Field(description="Versions in the model directory that failed to load since the start.")
    ]
    default: str
    limits: Limits


@router.get("/models")
async def models(request: Request) -> ModelList:
    """List the models and the limits."""
    services = app_state(request)
    services.require_serving()
    registry, settings = services.registry, services.settings
    return ModelList(
        models=[_card(model, "distance_quantiles") for model in registry.models.values()],
        failures=[
            LoadFailure(name=name, version=version, reason=reason)
            for ref, reason in sorted(registry.failures.items())
            for name, _, version in [ref.partition("/")]
        ],
        default=registry.resolve().ref,
        limits=Limits(
            n=settings.max_images,
            images=settings.max_images,
            steps=settings.max_steps,
            frames=MAX_FRAMES,
            body_bytes=settings.max_body_bytes,
            pixels=settings.max_pixels,
        ),
    )


@router.get("/models/{name}", response_model=ServedCard)
@router.get("/models/{name}/{version}", response_model=ServedCard)
async def model(request: Request) -> Response:
    """Show the card of a model, and the device that runs it."""
    services = app_state(request)
    services.require_serving()
    return JSONResponse(_card(services.registry.resolve("/".join(request.path_params.values()))))


# Load balancers probe with HEAD too. Each probe has two routes: the lower one, registered first, answers; the upper one
# is in the document, where HEAD would need an operation of its own.
@router.get("/healthz")
@router.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Is the process alive?"""
    return {"status": "alive"}


@router.get("/readyz")
@router.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
async def readyz(request: Request) -> Json:
    """Can it serve?

    200 once all models are loaded, warm and verified by their golden rows; else 503 with the reason.
    """
    services = app_state(request)
    services.require_ready()
    return {"status": "ready", "models": {ref: _device(model) for ref, model in services.registry.models.items()}}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus, or as OpenMetrics if `Accept` names it."""
    services = app_state(request)
    services.update_gauges()
    content, content_type = await services.metrics.scrape(",".join(request.headers.getlist("accept")))
    return Response(content, headers={"Content-Type": content_type})


def _card(model: ServedModel, *without: str) -> Json:
    golden = model.loaded.golden
    return model.card.model_dump(mode="json", exclude=set(without)) | {
        "digest": f"sha256:{model.digest}",
        **_device(model),
        "reproducible": {"kind": golden.reproducible, "difference": golden.spread},
    }


def _device(model: ServedModel) -> dict[str, str | None]:
    loaded = model.loaded
    return {"device": loaded.device, "provider": loaded.provider, "fallback_reason": loaded.fallback_reason}
