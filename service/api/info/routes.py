"""`/models`, `/healthz`, `/readyz` and `/metrics`."""

from typing import Final, Literal

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from service.api.native.schemas import MAX_FRAMES, Described
from service.api.negotiation import Json
from service.api.request import ApiRequest
from service.api.table import Endpoint
from service.artifact.card import Card
from service.models.registry import ServedModel


class Reproducible(BaseModel):
    """Whether a row has the same bits in every batch: `exact`, or `close` with the largest
    difference seen.
    """

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


class ModelList(Described):
    """All loaded models."""

    models: list[Json]
    """Cards without their arrays."""
    failures: list[LoadFailure]
    """Versions in the model directory that failed to load since the start."""
    default: str
    limits: Limits


async def models(api: ApiRequest) -> ModelList:
    """List the models and the limits."""
    services = api.services
    services.require_serving()
    registry = services.registry
    settings = services.settings
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


async def model(api: ApiRequest) -> Response:
    """Show the card of a model, and the device that runs it."""
    return JSONResponse(_card(api.named_model()))


async def healthz(_: ApiRequest) -> dict[str, str]:
    """Is the process alive?"""
    return {"status": "alive"}


async def readyz(api: ApiRequest) -> Json:
    """Can it serve?

    200 once all models are loaded, warm and verified by their golden rows; else 503 with the
    reason.
    """
    services = api.services
    services.require_ready()
    return {
        "status": "ready",
        "models": {ref: _device(model) for ref, model in services.registry.models.items()},
    }


async def metrics(api: ApiRequest) -> Response:
    """Metrics for Prometheus, or as OpenMetrics if `Accept` names it."""
    services = api.services
    services.update_gauges()
    content, content_type = await services.metrics.scrape(",".join(api.headers.getlist(b"accept")))
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
    return {
        "device": loaded.device,
        "provider": loaded.provider,
        "fallback_reason": loaded.fallback_reason,
    }


PROBE: Final = ("GET", "HEAD")  # load balancers probe with HEAD, too
ENDPOINTS: Final = (
    Endpoint("/models", models, "Service", "models", answer=ModelList),
    Endpoint("/models/{name}", model, "Service", "model", answer=ServedCard),
    Endpoint("/models/{name}/{version}", model, "Service", "model_version", answer=ServedCard),
    Endpoint(
        "/healthz",
        healthz,
        "Service",
        "healthz",
        PROBE,
        answer=dict[str, str],
        access="health",
    ),
    Endpoint("/readyz", readyz, "Service", "readyz", PROBE, answer=Json, access="health"),
    Endpoint("/metrics", metrics, "Service", "metrics", formats=("text/plain",), access="metrics"),
)
