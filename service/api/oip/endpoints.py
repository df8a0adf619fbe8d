"""The endpoints of the Open Inference Protocol v2 for clients of KServe and Triton: one input `x`, one output `y`.

Those of its model repository extension list, load and unload models at run time. With API keys, loading and unloading
need the scope `admin`, which `service.api.access` checks.

`infer` is here as stages, which the pipeline runs for every request of one turn of the event loop. Its rows use the
same queue as those of the native endpoints. The Content-Type of its body is ignored, because some clients send none.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.api.access import check_host
from service.api.app_state import AppState, app_state
from service.api.body import read_body
from service.api.negotiation import Json
from service.api.oip import tensors
from service.api.pipeline import LARGE_BODY, Endpoint, PathParameters, Plan
from service.api.request import ApiRequest, ResponseParts, count_codec, count_rows
from service.artifact.card import INPUT, OUTPUT, Card
from service.domain.errors import IgnError, InvalidContent, InvalidInference, NotReady
from service.domain.latents import FloatRows
from service.domain.tasks import Images, Result, SchedulingParams, StepParams
from service.images.pool import CodecThread
from service.models.registry import ModelChange, ServedModel

router = APIRouter(tags=["Open Inference Protocol"])

_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"  # the highest version, a given one


async def _serving(request: Request) -> AppState:
    services = app_state(request)
    services.require_serving()
    return services


ServingState = Annotated[AppState, Depends(_serving)]


async def _resolve(request: Request, services: ServingState) -> ServedModel:
    return services.registry.resolve(_ref(request.path_params))


Model = Annotated[ServedModel, Depends(_resolve)]


def _ref(path_parameters: PathParameters) -> str:
    """`name` or `name/version`."""
    return "/".join(path_parameters[part] for part in ("name", "version") if part in path_parameters)


def _versions(services: AppState, model: ServedModel) -> list[ServedModel]:
    return [other for other in services.registry.models.values() if other.card.name == model.card.name]


@router.get("/v2")
async def server() -> tensors.ServerMetadata:
    """Name, version and extensions of the server."""
    extensions = ["binary_tensor_data", "model_configuration", "statistics", "model_repository"]
    return tensors.ServerMetadata(name="ign-service", version=__version__, extensions=extensions)


@router.get("/v2/health/live")
@router.api_route("/v2/health/live", methods=["GET", "HEAD"], include_in_schema=False)
async def live() -> tensors.ServerLive:
    """Is the process alive?"""
    return tensors.ServerLive()


@router.get("/v2/health/ready")
@router.api_route("/v2/health/ready", methods=["GET", "HEAD"], include_in_schema=False)
async def ready(request: Request) -> tensors.ServerReady:
    """Do all models serve?"""
    app_state(request).require_ready()
    return tensors.ServerReady()


# Registered before the routes of one model, so that, as with Triton, a model named `stats` is not reachable.
@router.get("/v2/models/stats")
async def all_statistics(services: ServingState) -> Json:
    """Statistics of all models, as Triton gives them."""
    return _statistics(services.registry.models.values())


@router.get(_MODEL)
@router.get(_VERSION)
async def metadata(services: ServingState, model: Model) -> tensors.ModelMetadata:
    """Inputs and outputs of a model."""
    shape = [-1, *_row_shape(model.card)]
    x, y = (tensors.TensorMetadata(name=name, datatype=tensors.DATATYPE, shape=shape) for name in (INPUT, OUTPUT))
    return tensors.ModelMetadata(
        name=model.card.name,
        versions=[other.card.version for other in _versions(services, model)],
        platform="onnxruntime_onnx",
        inputs=[x],
        outputs=[y],
    )


@router.get(_MODEL + "/ready", response_class=Response)
@router.get(_VERSION + "/ready", response_class=Response)
async def model_ready(model: Model) -> Response:
    """Does a model serve?"""
    if not all(scheduler.healthy for scheduler in model.schedulers.values()):
        raise NotReady(f"a worker of {model.ref} is being replaced")
    return Response()


@router.get(_MODEL + "/config")
@router.get(_VERSION + "/config")
async def config(services: ServingState, model: Model) -> Json:
    """Triton's configuration of a model."""
    form = {"data_type": f"TYPE_{tensors.DATATYPE}", "format": "FORMAT_NONE", "dims": _row_shape(model.card)}
    return {
        "name": model.card.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": services.settings.max_images,
        "input": [{"name": INPUT, **form}],
        "output": [{"name": OUTPUT, **form}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0, "preserve_ordering": False},
        "model_transaction_policy": {"decoupled": False},
    }


@router.get(_MODEL + "/stats")
@router.get(_VERSION + "/stats")
async def statistics(request: Request, services: ServingState, model: Model) -> Json:
    """Statistics of one version, or of every version of a model, since it was loaded."""
    return _statistics([model] if "version" in request.path_params else _versions(services, model))


def _statistics(models: Iterable[ServedModel]) -> Json:
    return {
        "model_stats": [
            {"name": model.card.name, "version": model.card.version, **model.statistics.report()} for model in models
        ]
    }


# The stages of an inference

_JSON_BYTES: Final = 16  # estimated length of one number in JSON
_JSON_VALUE_BYTES: Final = 48  # of one number once its JSON is parsed: a Python float in a list, and a float64
_ARRAY_BYTES: Final = 16  # of one number in float32: input, result, a further step and their difference
_LARGE_BINARY: Final = 1 << 20  # bytes; reading or writing fewer of them takes less time than waking a thread
_MAX_TIMEOUT_US: Final = 10**15


@router.post(_MODEL + "/infer", response_model=tensors.InferAnswer)
@router.post(_VERSION + "/infer", response_model=tensors.InferAnswer)
def infer(body: tensors.InferRequest) -> None:
    """Apply f to the rows of the input `x`, `steps` times.

    Tensors are JSON numbers or little-endian bytes after the JSON.
    """


class Inputs(NamedTuple):
    """The rows that the scheduler gets: (N, C, H, W), finite float32."""

    rows: FloatRows


@dataclass(slots=True, kw_only=True, eq=False)
class InferWork:
    """An inference request whose JSON has been read."""

    api: ApiRequest
    model: ServedModel
    inference: tensors.Inference
    body: bytes
    plan: Plan | None
    is_large: bool  # a codec thread is to read the rows
    has_large_response: bool  # a codec thread is to write the response
    is_tiled: bool = False

    def open(self, thread: CodecThread) -> None:
        """Do nothing: the JSON says everything."""

    def scheduling(self, _: Inputs) -> SchedulingParams:
        """The request as the scheduler sees it."""
        api, deadline, timeout_us = self.api, self.api.deadline, self.inference.timeout_us
        if timeout_us:  # 0 means no timeout
            deadline = min(deadline, api.arrival + min(timeout_us, _MAX_TIMEOUT_US) / 1e6)
        return SchedulingParams(
            step_params=StepParams(steps=self.inference.steps),
            key=api.caller,
            deadline=deadline,
            request_id=api.request_id,
            observer=api.spans,
        )

    async def run_tiles(self, inputs: Inputs) -> Result:
        """Run the tiles of images of any size."""
        params = partial(self.scheduling, inputs)
        return await self.model.run_tiles([*inputs.rows], None, params, self.api.run_codec)

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        return InvalidInference(exc.detail) if isinstance(exc, InvalidContent) else exc


def _row_shape(card: Card) -> tuple[int, int, int]:
    """(C, H, W) of one row; −1 for any number."""
    return card.shape if card.tiles is None else (card.shape[0], -1, -1)


def _has_large_head(api: ApiRequest, body: bytes) -> bool:
    """Whether parsing needs a thread of the codec pool. The JSON before binary tensors is short."""
    return len(body) > (_LARGE_BINARY if api.headers.get(tensors.HEADER_FIELD) else LARGE_BODY)


def _parse(api: ApiRequest, body: bytes, path_parameters: PathParameters) -> InferWork:
    model = api.resolve(_ref(path_parameters))
    settings = api.services.settings.for_images(model.card.tiles)
    limits = {"max_rows": settings.max_images, "max_steps": settings.max_steps, "max_pixels": settings.max_pixels}
    inference = tensors.read_head(body, api.headers.getlist(tensors.HEADER_FIELD), _row_shape(model.card), **limits)
    values, binary, is_tiled = prod(inference.shape), inference.binary, model.card.tiles is not None
    rows, _, *size = inference.shape
    is_json = inference.data is not None
    held = values * (_ARRAY_BYTES + (_JSON_VALUE_BYTES if is_json else 0) + (0 if binary else _JSON_BYTES))
    if is_tiled:
        tiles = model.plan_tiles([(size[0], size[1])] * rows)
        rows = tiles.rows
        held += tiles.bytes
    return InferWork(
        api=api,
        model=model,
        inference=inference,
        body=body,
        plan=Plan(rows=rows, steps=inference.steps, bytes=held),
        is_large=is_tiled or _has_large_head(api, body),
        has_large_response=is_tiled or (4 * values > _LARGE_BINARY if binary else values * _JSON_BYTES > LARGE_BODY),
        is_tiled=is_tiled,
    )


def _decode(works: Sequence[InferWork]) -> list[Inputs | IgnError]:
    start, decoded = time.perf_counter(), list[Inputs | IgnError]()
    for work in works:
        try:
            decoded.append(_decode_one(work))
        except IgnError as exc:
            decoded.append(exc)
    count_codec("decode", [work.api for work in works], start)
    return decoded


def _decode_one(work: InferWork, _: CodecThread | None = None) -> Inputs:
    return Inputs(tensors.read_rows(work.inference, work.body))


Encoded = tuple[Result, list[tensors.Piece], int | None]
"""A result, the pieces of its response, and how many of their bytes are JSON; None: all of them."""


def _encode(ended: Sequence[tuple[InferWork, Images, Result]]) -> list[Encoded]:
    start, encoded = time.perf_counter(), list[Encoded]()
    for work, _, result in ended:
        rows = np.asarray(result.rows)
        encoded.append((result, *tensors.write_response(work.inference, work.model.card, rows)))
    if not ended[0][0].has_large_response:
        count_codec("encode", [work.api for work, _, _ in ended], start)
    return encoded


def _respond(ended: Sequence[tuple[InferWork, Encoded]]) -> list[ResponseParts]:
    count_rows([(work.api, work.model, result) for work, (result, _, _) in ended])
    responses: list[ResponseParts] = []
    for work, (_, pieces, length) in ended:
        work.model.statistics.tensors(work.api.seconds["decode"], work.api.seconds["encode"])
        headers, media_type = work.api.response_headers(work.model), "application/json"
        if length is not None:
            headers.append((tensors.HEADER_FIELD, b"%d" % length))
            media_type = "application/octet-stream"
        responses.append((headers, pieces if len(pieces) == 1 else [b"".join(pieces)], media_type))
    return responses


ENDPOINTS: Final = tuple(  # the head needs no further check: the Content-Type is ignored
    Endpoint(f"{path}/infer", lambda _: None, _has_large_head, _parse, _decode, _decode_one, _encode, _respond)
    for path in (_MODEL, _VERSION)
)


# The model repository

_MAX_REPOSITORY_BYTES: Final = 1 << 14  # of a body; parsing so many takes a millisecond


async def _check_allowed(request: Request) -> None:
    settings = app_state(request).settings
    if settings.api_keys_file is None:
        check_host(request.headers, settings)


repository = APIRouter(tags=["Open Inference Protocol"], dependencies=[Depends(_check_allowed)])


@repository.post("/v2/repository/index")
async def index(request: Request, services: ServingState) -> list[tensors.IndexEntry]:
    """List every version that serves or is in the model directory."""
    options = await _read(request, services, tensors.IndexRequest)
    return [
        tensors.IndexEntry(name=name, version=version, state=entry.state, reason=entry.reason)
        for entry in await services.registry.index()
        for name, _, version in [entry.ref.partition("/")]
        if entry.state == "READY" or not options.ready
    ]


@repository.post("/v2/repository/models/{name}/load")
async def load(request: Request, services: ServingState, name: str) -> Any:
    """Load a model, or its new and changed versions, from the model directory.

    The response is sent when all of them serve. Until then, and if one cannot be verified, the previous ones serve.
    """
    await _read(request, services, tensors.LoadRequest)
    is_admin = services.settings.api_keys_file is not None  # else anyone may call it
    return await _change(services, ModelChange(name, loads=True, may_be_new=is_admin))


@repository.post("/v2/repository/models/{name}/unload")
async def unload(request: Request, services: ServingState, name: str) -> Any:
    """Unload every version of a model after its requests in flight; the default model cannot be unloaded."""
    await _read(request, services, tensors.UnloadRequest)
    return await _change(services, ModelChange(name, loads=False))


async def _change(services: AppState, change: ModelChange) -> Any:
    await (services.change_everywhere or services.registry.change)(change)
    return {}


async def _read(request: Request, services: AppState, schema: type[tensors.Schema]) -> tensors.Schema:
    """The body of a call, whatever its Content-Type. FastAPI would read one of any size, and want application/json."""
    own: ApiRequest = request.state.request
    seconds = own.arrival + services.settings.body_timeout_s - services.clock()
    body = await read_body(own.headers, request.receive, max_bytes=_MAX_REPOSITORY_BYTES, seconds=seconds)
    own.request_bytes = len(body)
    return tensors.parse(body, schema)
