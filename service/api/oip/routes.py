"""The endpoints of the Open Inference Protocol v2 for clients of KServe and Triton: one input `x`, one output `y`.

The rows use the same queue as those of the native endpoints. The Content-Type of a body is ignored, because some
clients send none.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import __version__
from service.api.app_state import AppState, app_state
from service.api.oip import openapi, stages
from service.api.oip.schemas import ModelConfig, ModelMetadata, ServerMetadata, StatisticsAnswer
from service.api.oip.tensors import DATATYPE
from service.artifact.card import INPUT, OUTPUT
from service.domain.errors import NotReady
from service.models.registry import ServedModel
from service.observability.statistics import Counts, Duration

router = APIRouter(tags=["Open Inference Protocol"])

PLATFORM: Final = "onnxruntime_onnx"
_ZERO_DURATION: Final = {"count": 0, "ns": 0}

Endpoint = Callable[..., Awaitable[Response] | None]


def _register_model_routes(method: str, suffix: str, **described: Any) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint for two paths: a model's highest version, and a given version."""

    def register(endpoint: Endpoint) -> Endpoint:
        for path, options in openapi.model_routes(suffix, described):
            router.add_api_route(path, endpoint, methods=[method], **options)
        return endpoint

    return register


@router.get("/v2", response_model=ServerMetadata)
async def server(request: Request) -> Response:
    """Name, version and protocol extensions of the server."""
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    if app_state(request).settings.workers == 1:
        extensions.append("model_repository")
    return JSONResponse({"name": "ign-service", "version": __version__, "extensions": extensions})


@router.get("/v2/health/live", response_class=Response)
@router.api_route("/v2/health/live", methods=["GET", "HEAD"], include_in_schema=False)
async def live() -> Response:
    """200 while the process runs."""
    return Response()


@router.get("/v2/health/ready", response_class=Response, responses=openapi.problems(503))
@router.api_route("/v2/health/ready", methods=["GET", "HEAD"], include_in_schema=False)
async def ready(request: Request) -> Response:
    """200 when every model serves; else 503."""
    app_state(request).require_ready()
    return Response()


# Registered before the routes of one model, so that, as with Triton, a model named `stats` is not reachable.
@router.get("/v2/models/stats", response_model=StatisticsAnswer, responses=openapi.problems(401, 503))
async def all_statistics(request: Request) -> Response:
    """Statistics of every model in service since it was loaded."""
    services = app_state(request)
    services.require_serving()
    return await _statistics(services.registry.models.values())


@_register_model_routes("GET", "", response_model=ModelMetadata)
async def metadata(request: Request) -> Response:
    """Inputs and outputs of a model."""
    services, model = _resolve(request)
    shape = [-1, *model.card.shape]
    return JSONResponse(
        {
            "name": model.card.name,
            "versions": [other.card.version for other in _versions(services, model)],
            "platform": PLATFORM,
            "inputs": [{"name": INPUT, "datatype": DATATYPE, "shape": shape}],
            "outputs": [{"name": OUTPUT, "datatype": DATATYPE, "shape": shape}],
        }
    )


@_register_model_routes("GET", "/ready", response_class=Response)
async def model_ready(request: Request) -> Response:
    """200 when the model serves; else 404 or 503."""
    _, model = _resolve(request)
    if not model.scheduler.healthy:
        raise NotReady(f"a worker of {model.ref} is being replaced")
    return Response()


@_register_model_routes("GET", "/config", response_model=ModelConfig)
async def config(request: Request) -> Response:
    """Configuration of a model for clients of Triton."""
    services, model = _resolve(request)
    tensor = {"data_type": f"TYPE_{DATATYPE}", "format": "FORMAT_NONE", "dims": list(model.card.shape)}
    return JSONResponse(
        {
            "name": model.card.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"all": {}},
            "max_batch_size": services.settings.max_images,
            "input": [{"name": INPUT, **tensor}],
            "output": [{"name": OUTPUT, **tensor}],
            "dynamic_batching": {"max_queue_delay_microseconds": 0, "preserve_ordering": False},
            "model_transaction_policy": {"decoupled": False},
        }
    )


@_register_model_routes("GET", "/stats", response_model=StatisticsAnswer)
async def statistics(request: Request) -> Response:
    """Statistics of one version, or of every version of a model, since it was loaded."""
    services, model = _resolve(request)
    return await _statistics([model] if "version" in request.path_params else _versions(services, model))


@_register_model_routes("POST", "/infer", **openapi.INFER)
def infer() -> None:
    """Apply f to rows, `steps` times."""


def _resolve(request: Request) -> tuple[AppState, ServedModel]:
    services = app_state(request)
    services.require_serving()
    return services, services.registry.resolve(stages.model_ref(request.path_params))


def _versions(services: AppState, model: ServedModel) -> list[ServedModel]:
    return [other for other in services.registry.models.values() if other.card.name == model.card.name]


async def _statistics(models: Iterable[ServedModel]) -> Response:
    return JSONResponse({"model_stats": [_model_stats(model, model.statistics.counts()) for model in models]})


def _model_stats(model: ServedModel, counts: Counts) -> dict[str, Any]:
    return {
        "name": model.card.name,
        "version": model.card.version,
        "last_inference": counts.last_ms,
        "inference_count": counts.rows,
        "execution_count": sum(calls.count for calls in counts.batches.values()),
        "inference_stats": {
            "success": _duration(counts.success),
            "fail": _duration(counts.fail),
            "queue": _duration(counts.queue),
            "compute_input": _duration(counts.input),
            "compute_infer": _duration(counts.infer),
            "compute_output": _duration(counts.output),
            "cache_hit": _ZERO_DURATION,
            "cache_miss": _ZERO_DURATION,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _ZERO_DURATION,
                "compute_infer": _duration(calls),
                "compute_output": _ZERO_DURATION,
            }
            for rows, calls in counts.batches.items()
        ],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
