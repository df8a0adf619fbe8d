"""What can be asked about the service: models, health, metrics."""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.api.app_state import AppState, app_state
from service.api.info.schemas import ModelList, ServedCard
from service.api.native.validation import MAX_FRAMES
from service.api.oip.openapi import problems
from service.models.registry import ServedModel

router = APIRouter(tags=["Service"])

_ARRAYS: Final = frozenset({"distance_quantiles"})


@router.get("/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """Every model in service, the default, and the limits of a request."""
    services = app_state(request)
    services.require_serving()
    settings = services.settings
    return JSONResponse(
        {
            "models": [_card(model, without=_ARRAYS) for model in services.registry.models.values()],
            "failures": [
                {"name": name, "version": version, "reason": reason}
                for ref, reason in sorted(services.registry.failures.items())
                for name, _, version in [ref.partition("/")]
            ],
            "default": services.registry.resolve().ref,
            "limits": {
                "n": settings.max_images,
                "images": settings.max_images,
                "steps": settings.max_steps,
                "frames": MAX_FRAMES,
                "body_bytes": settings.max_body_bytes,
                "pixels": settings.max_pixels,
            },
        }
    )


@router.get("/models/{name}", response_model=ServedCard, responses=problems(404))
async def model(request: Request, name: str) -> Response:
    """The card of a model's highest version, and how it runs here."""
    return _one(app_state(request), name)


@router.get("/models/{name}/{version}", response_model=ServedCard, responses=problems(404))
async def model_version(request: Request, name: str, version: str) -> Response:
    """The card of one version, and how it runs here."""
    return _one(app_state(request), f"{name}/{version}")


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """200 while the process can answer."""
    return {"status": "alive"}


@router.get("/readyz", responses=problems(503))
async def readyz(request: Request) -> dict[str, Any]:
    """200 only when every model is loaded, warm and reproduces its golden rows; else 503 with the reason."""
    services = app_state(request)
    services.require_ready()
    return {"status": "ready", "models": {ref: _device(model) for ref, model in services.registry.models.items()}}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    services = app_state(request)
    services.update_gauges()
    content, content_type = services.metrics.render()
    return Response(content, headers={"Content-Type": content_type})


def _one(services: AppState, ref: str) -> Response:
    services.require_serving()
    return JSONResponse(_card(services.registry.resolve(ref), without=frozenset()))


def _card(model: ServedModel, *, without: frozenset[str]) -> dict[str, Any]:
    golden = model.loaded.golden
    return model.card.model_dump(mode="json", exclude=set(without)) | {
        "digest": f"sha256:{model.digest}",
        **_device(model),
        "reproducible": {"kind": golden.reproducible, "difference": golden.spread},
    }


def _device(model: ServedModel) -> dict[str, str | None]:
    loaded = model.loaded
    return {"device": loaded.device, "provider": loaded.provider, "fallback_reason": loaded.fallback_reason}
