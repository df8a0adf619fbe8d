"""The Open Inference Protocol v2, as KServe's and Triton's clients speak it: one input `x`, one output `y`.

The rows go through the same queue as everything else. The body is read as it is, whatever its Content-Type: some
clients send none.
"""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import __version__
from service.api.app_state import AppState, services
from service.api.http.disconnect import until_disconnect
from service.api.http.request_context import ApiRequest
from service.api.oip import openapi
from service.api.oip.compression import asked_coding, coding_of, deflate, inflate
from service.api.oip.schemas import ModelConfig, ModelMetadata, ServerMetadata, StatisticsAnswer
from service.api.oip.tensors import DATATYPE, HEADER_LENGTH, Inference, header_length, read_request, write_answer
from service.artifact.card import INPUT, OUTPUT
from service.domain.errors import NotReady
from service.domain.tasks import Result, StepParams
from service.models.engine import Batch, Call
from service.models.repository import LoadedModel
from service.observability.statistics import Counts, Duration

router = APIRouter(tags=["Open Inference Protocol"])

PLATFORM: Final = "onnxruntime_onnx"
_ASIDE: Final = 1 << 15  # bytes: what is larger is read and written in the codec pool
_JSON_BYTES: Final = 16  # of a number, about
_NOTHING: Final = {"count": 0, "ns": 0}
_LONGEST_US: Final = 10**15

Endpoint = Callable[[Request], Awaitable[Response]]


def _of_a_model(method: str, suffix: str, **described: Any) -> Callable[[Endpoint], Endpoint]:
    """A route for a model's highest version, and one for each version."""

    def register(endpoint: Endpoint) -> Endpoint:
        for path, options in openapi.of_a_model(suffix, described):
            router.add_api_route(path, endpoint, methods=[method], **options)
        return endpoint

    return register


@router.get("/v2", response_model=ServerMetadata)
async def server(request: Request) -> Response:
    """What this server is, and which extensions it speaks."""
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    if services(request).settings.workers == 1:
        extensions.append("model_repository")
    return JSONResponse({"name": "ign-service", "version": __version__, "extensions": extensions})


@router.get("/v2/health/live", response_class=Response)
async def live() -> Response:
    """200 while the process can answer."""
    return Response()


@router.get("/v2/health/ready", response_class=Response, responses=openapi.problems(503))
async def ready(request: Request) -> Response:
    """200 when requests can be served; else 503."""
    services(request).require_ready()
    return Response()


# Before the routes of one model: none can be named `stats` here, as with Triton.
@router.get("/v2/models/stats", response_model=StatisticsAnswer, responses=openapi.problems(401, 503))
async def all_statistics(request: Request) -> Response:
    """What every model in service has done since it was loaded."""
    found = services(request)
    found.require_ready()
    return _statistics(found, list(found.repository.models.values()))


@_of_a_model("GET", "", response_model=ModelMetadata)
async def metadata(request: Request) -> Response:
    """What a model takes and gives."""
    found, model = _model(request)
    shape = [-1, *model.card.shape]
    return JSONResponse(
        {
            "name": model.card.name,
            "versions": [other.card.version for other in _versions(found, model)],
            "platform": PLATFORM,
            "inputs": [{"name": INPUT, "datatype": DATATYPE, "shape": shape}],
            "outputs": [{"name": OUTPUT, "datatype": DATATYPE, "shape": shape}],
        }
    )


@_of_a_model("GET", "/ready", response_class=Response)
async def model_ready(request: Request) -> Response:
    """200 when this model serves; else 404 or 503."""
    found, model = _model(request)
    if not found.lineup.schedulers[model.ref].healthy:
        raise NotReady(f"the worker of {model.ref} is being replaced")
    return Response()


@_of_a_model("GET", "/config", response_model=ModelConfig)
async def config(request: Request) -> Response:
    """A model as Triton's clients want it described."""
    found, model = _model(request)
    tensor = {"data_type": f"TYPE_{DATATYPE}", "format": "FORMAT_NONE", "dims": list(model.card.shape)}
    return JSONResponse(
        {
            "name": model.card.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"all": {}},
            "max_batch_size": found.settings.max_images,
            "input": [{"name": INPUT, **tensor}],
            "output": [{"name": OUTPUT, **tensor}],
            "dynamic_batching": {"max_queue_delay_microseconds": 0, "preserve_ordering": False},
            "model_transaction_policy": {"decoupled": False},
        }
    )


@_of_a_model("GET", "/stats", response_model=StatisticsAnswer)
async def statistics(request: Request) -> Response:
    """What one version, or every version of a model, has done since it was loaded."""
    found, model = _model(request)
    return _statistics(found, [model] if "version" in request.path_params else _versions(found, model))


@_of_a_model("POST", "/infer", **openapi.INFER)
async def infer(request: Request) -> Response:
    """Apply f to rows: f^steps(x)."""
    exchange = ApiRequest(request)
    length = header_length(exchange.headers.getlist(HEADER_LENGTH))
    coding = coding_of(", ".join(exchange.headers.getlist("content-encoding")))
    body = await exchange.body(encoded=True)
    model, settings = exchange.model(_ref(request)), exchange.services.settings

    def read() -> Inference:
        plain = body if coding is None else inflate(body, coding, settings.max_body_bytes)
        return read_request(plain, length, model.card, max_rows=settings.max_images, max_steps=settings.max_steps)

    async def work() -> Response:
        asked = await exchange.aside(read, large=coding is not None or len(body) > _ASIDE)
        call = _sooner(exchange.call, exchange.arrival, asked.timeout_us)
        batch = Batch(rows=asked.rows, step_params=StepParams(steps=asked.steps))
        return await _answer(exchange, model, asked, await exchange.services.engine.run(model, batch, call))

    return await until_disconnect(request.receive, work())


async def _answer(exchange: ApiRequest, model: LoadedModel, asked: Inference, result: Result) -> Response:
    exchange.count_rows(model, result)
    coding = asked_coding(", ".join(exchange.headers.getlist("accept-encoding")))

    def write() -> tuple[bytes, int | None]:
        content, length = write_answer(asked, model.card, result.rows)
        return content if coding is None else deflate(content, coding), length

    size = result.rows.nbytes if asked.binary else result.rows.size * _JSON_BYTES
    content, length = await exchange.encode(write, large=size > _ASIDE)
    exchange.services.lineup.statistics(model).tensors(exchange.seconds["decode"], exchange.seconds["encode"])
    headers = exchange.response_headers(model, None) | {"Vary": "Accept-Encoding"}
    if coding is not None:
        headers["Content-Encoding"] = coding
    if length is None:
        return Response(content, headers=headers, media_type="application/json")
    return Response(content, headers=headers | {HEADER_LENGTH: str(length)}, media_type="application/octet-stream")


def _sooner(call: Call, arrival: float, timeout_us: int) -> Call:
    """The call with the caller's timeout, if that ends before its deadline."""
    if timeout_us == 0 or call.deadline is None:
        return call
    return dataclasses.replace(call, deadline=min(call.deadline, arrival + min(timeout_us, _LONGEST_US) / 1e6))


def _ref(request: Request) -> str:
    return "/".join(request.path_params[part] for part in ("name", "version") if part in request.path_params)


def _model(request: Request) -> tuple[AppState, LoadedModel]:
    found = services(request)
    found.require_ready()
    return found, found.repository.resolve(_ref(request))


def _versions(found: AppState, model: LoadedModel) -> list[LoadedModel]:
    return [other for other in found.repository.models.values() if other.card.name == model.card.name]


def _statistics(found: AppState, models: list[LoadedModel]) -> Response:
    counted = [_counted(model, found.lineup.statistics(model).counts()) for model in models]
    return JSONResponse({"model_stats": counted})


def _counted(model: LoadedModel, counts: Counts) -> dict[str, Any]:
    return {
        "name": model.card.name,
        "version": model.card.version,
        "last_inference": counts.last_ms,
        "inference_count": counts.rows,
        "execution_count": sum(spent.count for spent in counts.batches.values()),
        "inference_stats": {
            "success": _spent(counts.success),
            "fail": _spent(counts.fail),
            "queue": _spent(counts.queue),
            "compute_input": _spent(counts.input),
            "compute_infer": _spent(counts.infer),
            "compute_output": _spent(counts.output),
            "cache_hit": _NOTHING,
            "cache_miss": _NOTHING,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _NOTHING,
                "compute_infer": _spent(spent),
                "compute_output": _NOTHING,
            }
            for rows, spent in counts.batches.items()
        ],
    }


def _spent(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
