"""What can be asked about the service: models, health, metrics."""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.api.app_state import AppState, services
from service.api.info.schemas import ModelList, ServedCard
from service.api.native.limits import MAX_FRAMES
from service.api.oip.openapi import problems
from service.models.repository import LoadedModel

router = APIRouter(tags=["Service"])

_ARRAYS: Final = frozenset({"distance_quantiles"})


@router.get("/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """Every model in service, the default, and the limits of a request."""
    found = services(request)
    found.require_ready()
    settings = found.settings
    return JSONResponse(
        {
            "models": [_card(model, without=_ARRAYS) for model in found.repository.models.values()],
            "failures": [
                {"name": name, "version": version, "reason": reason}
                for ref, reason in sorted(found.lineup.failures.items())
                for name, _, version in [ref.partition("/")]
            ],
            "default": found.repository.resolve().ref,
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
    return _one(services(request), name)


@router.get("/models/{name}/{version}", response_model=ServedCard, responses=problems(404))
async def model_version(request: Request, name: str, version: str) -> Response:
    """The card of one version, and how it runs here."""
    return _one(services(request), f"{name}/{version}")


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """200 while the process can answer."""
    return {"status": "alive"}


@router.get("/readyz", responses=problems(503))
async def readyz(request: Request) -> dict[str, Any]:
    """200 only when every model is loaded, warm and reproduces its golden rows; else 503 with the reason."""
    found = services(request)
    found.require_ready()
    running = {
        ref: {"device": loaded.device, "provider": loaded.provider, "fallback_reason": loaded.fallback_reason}
        for ref, loaded in found.repository.models.items()
    }
    return {"status": "ready", "models": running}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    found = services(request)
    found.metrics.ready.set(found.ready)
    content, content_type = found.metrics.render()
    return Response(content, headers={"Content-Type": content_type})


def _one(found: AppState, ref: str) -> Response:
    found.require_ready()
    return JSONResponse(_card(found.repository.resolve(ref), without=frozenset()))


def _card(loaded: LoadedModel, *, without: frozenset[str]) -> dict[str, Any]:
    return loaded.card.model_dump(mode="json", exclude=set(without)) | {
        "digest": f"sha256:{loaded.digest}",
        "device": loaded.device,
        "provider": loaded.provider,
        "fallback_reason": loaded.fallback_reason,
        "reproducible": {"kind": loaded.golden.reproducible, "difference": loaded.golden.spread},
    }
