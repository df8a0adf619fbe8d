"""The endpoints of the Open Inference Protocol v2 for clients of KServe and Triton: one input `x`,
one output `y`.

Those of its model repository extension list, load and unload models at run time. With API keys,
loading and unloading need the scope `admin`, which `service.api.access` checks.

`infer` is here as stages, which the pipeline runs for every request of one turn of the event loop.
Its rows use the same queue as those of the native endpoints. The Content-Type of its body is
ignored, because some clients send none.
"""

import inspect
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from starlette.responses import Response

from service import __version__
from service.api.access import check_host
from service.api.app_state import AppState
from service.api.body import read_body
from service.api.info.openapi import BINARY_TENSORS
from service.api.info.routes import PROBE
from service.api.negotiation import Json, Media
from service.api.oip import tensors
from service.api.pipeline import LARGE_BODY, PathParameters, Plan, Stages
from service.api.request import ApiRequest, ResponseParts, count_codec, count_rows
from service.api.table import Endpoint, Handler
from service.artifact.card import INPUT, OUTPUT, Card
from service.domain.errors import IgnError, InvalidContent, InvalidInference, NotReady
from service.domain.latents import FloatRows
from service.domain.tasks import Images, Result, SchedulingParams, StepParams
from service.images.pool import CodecThread
from service.models.registry import ModelChange, ServedModel

_TAG: Final = "Open Inference Protocol"
# Paths of the highest version of a model, and of a given one.
_MODEL: Final = "/v2/models/{name}"
_VERSION: Final = "/v2/models/{name}/versions/{version}"


def _serving(api: ApiRequest) -> AppState:
    api.services.require_serving()
    return api.services


def _resolve(api: ApiRequest) -> ServedModel:
    return _serving(api).registry.resolve(_ref(api.route.parameters))


def _ref(path_parameters: PathParameters) -> str:
    """`name` or `name/version`."""
    return "/".join(
        path_parameters[part] for part in ("name", "version") if part in path_parameters
    )


def _versions(services: AppState, model: ServedModel) -> list[ServedModel]:
    return [
        other for other in services.registry.models.values() if other.card.name == model.card.name
    ]


async def server(_: ApiRequest) -> tensors.ServerMetadata:
    """Name, version and extensions of the server."""
    extensions = ["binary_tensor_data", "model_configuration", "statistics", "model_repository"]
    return tensors.ServerMetadata(name="ign-service", version=__version__, extensions=extensions)


async def live(_: ApiRequest) -> tensors.ServerLive:
    """Is the process alive?"""
    return tensors.ServerLive()


async def ready(api: ApiRequest) -> tensors.ServerReady:
    """Do all models serve?"""
    api.services.require_ready()
    return tensors.ServerReady()


async def all_statistics(api: ApiRequest) -> Json:
    """Statistics of all models, as Triton gives them."""
    return _statistics(_serving(api).registry.models.values())


async def metadata(api: ApiRequest) -> tensors.ModelMetadata:
    """Inputs and outputs of a model."""
    model = _resolve(api)
    shape = [-1, *_row_shape(model.card)]
    x, y = (
        tensors.TensorMetadata(name=name, datatype=tensors.DATATYPE, shape=shape)
        for name in (INPUT, OUTPUT)
    )
    return tensors.ModelMetadata(
        name=model.card.name,
        versions=[other.card.version for other in _versions(api.services, model)],
        platform="onnxruntime_onnx",
        inputs=[x],
        outputs=[y],
    )


async def model_ready(api: ApiRequest) -> Response:
    """Does a model serve?"""
    model = _resolve(api)
    if not all(scheduler.healthy for scheduler in model.schedulers.values()):
        raise NotReady(f"a worker of {model.ref} is being replaced")
    return Response()


async def config(api: ApiRequest) -> Json:
    """Triton's configuration of a model."""
    model = _resolve(api)
    form = {
        "data_type": f"TYPE_{tensors.DATATYPE}",
        "format": "FORMAT_NONE",
        "dims": _row_shape(model.card),
    }
    return {
        "name": model.card.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": api.services.settings.max_images,
        "input": [{"name": INPUT, **form}],
        "output": [{"name": OUTPUT, **form}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0, "preserve_ordering": False},
        "model_transaction_policy": {"decoupled": False},
    }


async def statistics(api: ApiRequest) -> Json:
    """Statistics of one version, or of every version of a model, since it was loaded."""
    model = _resolve(api)
    return _statistics(
        [model] if "version" in api.route.parameters else _versions(api.services, model)
    )


def _statistics(models: Iterable[ServedModel]) -> Json:
    return {
        "model_stats": [
            {"name": model.card.name, "version": model.card.version, **model.statistics.report()}
            for model in models
        ]
    }


# The stages of an inference

_JSON_BYTES: Final = 16  # estimated length of one number in JSON
# of one number once its JSON is parsed: a Python float in a list, and a float64
_JSON_VALUE_BYTES: Final = 48
# of one number in float32: input, result, a further step and their difference
_ARRAY_BYTES: Final = 16
# bytes; reading or writing fewer of them takes less time than waking a thread
_LARGE_BINARY: Final = 1 << 20
_MAX_TIMEOUT_US: Final = 10**15


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
        api = self.api
        deadline = self.api.deadline
        timeout_us = self.inference.timeout_us
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


def infer(api: ApiRequest, body: bytes, path_parameters: PathParameters) -> InferWork:
    """Apply f to the rows of the input `x`, `steps` times.

    Tensors are JSON numbers or little-endian bytes after the JSON.
    """
    model = api.resolve(_ref(path_parameters))
    settings = api.services.settings.for_images(model.card.tiles)
    limits = {
        "max_rows": settings.max_images,
        "max_steps": settings.max_steps,
        "max_pixels": settings.max_pixels,
    }
    inference = tensors.read_head(
        body, api.headers.getlist(tensors.HEADER_FIELD), _row_shape(model.card), **limits
    )
    values = prod(inference.shape)
    binary = inference.binary
    is_tiled = model.card.tiles is not None
    rows, _, *size = inference.shape
    is_json = inference.data is not None
    held = values * (
        _ARRAY_BYTES + (_JSON_VALUE_BYTES if is_json else 0) + (0 if binary else _JSON_BYTES)
    )
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
        has_large_response=is_tiled
        or (4 * values > _LARGE_BINARY if binary else values * _JSON_BYTES > LARGE_BODY),
        is_tiled=is_tiled,
    )


def _decode(works: Sequence[InferWork]) -> list[Inputs | IgnError]:
    start = time.perf_counter()
    decoded = list[Inputs | IgnError]()
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
    start = time.perf_counter()
    encoded = list[Encoded]()
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
        headers = work.api.response_headers(work.model)
        media_type = "application/json"
        if length is not None:
            headers.append((tensors.HEADER_FIELD, b"%d" % length))
            media_type = BINARY_TENSORS
        responses.append((headers, pieces if len(pieces) == 1 else [b"".join(pieces)], media_type))
    return responses


# The model repository

_MAX_REPOSITORY_BYTES: Final = 1 << 14  # of a body; parsing so many takes a millisecond


async def index(api: ApiRequest) -> list[tensors.IndexEntry]:
    """List every version that serves or is in the model directory."""
    services, options = await _read(api, tensors.IndexRequest)
    return [
        tensors.IndexEntry(name=name, version=version, state=entry.state, reason=entry.reason)
        for entry in await services.registry.index()
        for name, _, version in [entry.ref.partition("/")]
        if entry.state == "READY" or not options.ready
    ]


async def load(api: ApiRequest) -> Any:
    """Load a model, or its new and changed versions, from the model directory.

    The response is sent when all of them serve. Until then, and if one cannot be verified, the
    previous ones serve.
    """
    services, _ = await _read(api, tensors.LoadRequest)
    is_admin = services.settings.api_keys_file is not None  # else anyone may call it
    return await _change(
        services, ModelChange(api.route.parameters["name"], loads=True, may_be_new=is_admin)
    )


async def unload(api: ApiRequest) -> Any:
    """Unload every version of a model after its requests in flight.

    The default model cannot be unloaded.
    """
    services, _ = await _read(api, tensors.UnloadRequest)
    return await _change(services, ModelChange(api.route.parameters["name"], loads=False))


async def _change(services: AppState, change: ModelChange) -> Any:
    await (services.change_everywhere or services.registry.change)(change)
    return {}


async def _read(api: ApiRequest, schema: type[tensors.Schema]) -> tuple[AppState, tensors.Schema]:
    """The services, if the caller may use them, and the body of a call, whatever its
    Content-Type.
    """
    services = api.services
    settings = api.services.settings
    if settings.api_keys_file is None:
        check_host(api.headers, settings)
    services.require_serving()
    seconds = api.arrival + settings.body_timeout_s - services.clock()
    body = await read_body(
        api.headers, api.receive, max_bytes=_MAX_REPOSITORY_BYTES, seconds=seconds
    )
    api.request_bytes = len(body)
    return services, tensors.parse(body, schema)


# The table


def _of_model(
    path: str, run: Stages | Handler, name: str, **declared: Any
) -> tuple[Endpoint, Endpoint]:
    """The endpoint of the highest version of a model, and that of a given one."""
    return (
        Endpoint(_MODEL + path, run, _TAG, name, **declared),
        Endpoint(_VERSION + path, run, _TAG, f"{name}_version", **declared),
    )


# The head of an inference needs no further check: the Content-Type is ignored.
_STAGES: Final = Stages(
    lambda _: None, _has_large_head, infer, _decode, _decode_one, _encode, _respond
)
_REPOSITORY: Final = "/v2/repository"
_POST: Final = ("POST",)
ENDPOINTS: Final = (
    Endpoint("/v2", server, _TAG, "server", answer=tensors.ServerMetadata),
    Endpoint("/v2/health/live", live, _TAG, "live", PROBE, answer=tensors.ServerLive),
    Endpoint("/v2/health/ready", ready, _TAG, "ready", PROBE, answer=tensors.ServerReady),
    # As with Triton, a model named `stats` is not reachable.
    Endpoint("/v2/models/stats", all_statistics, _TAG, "all_statistics", answer=Json),
    *_of_model("", metadata, "metadata", answer=tensors.ModelMetadata),
    *_of_model("/ready", model_ready, "model_ready", formats=()),
    *_of_model("/config", config, "config", answer=Json),
    *_of_model("/stats", statistics, "statistics", answer=Json),
    *_of_model(
        "/infer",
        _STAGES,
        "infer",
        methods=_POST,
        request=tensors.InferRequest,
        bodies=(BINARY_TENSORS,),
        answer=tensors.InferAnswer,
        formats=(Media.JSON, BINARY_TENSORS),
        text=inspect.getdoc(infer) or "",
    ),
    Endpoint(
        f"{_REPOSITORY}/index",
        index,
        _TAG,
        "index",
        _POST,
        tensors.IndexRequest,
        answer=list[tensors.IndexEntry],
    ),
    Endpoint(
        f"{_REPOSITORY}/models/{{name}}/load",
        load,
        _TAG,
        "load",
        _POST,
        tensors.LoadRequest,
        answer=Any,
    ),
    Endpoint(
        f"{_REPOSITORY}/models/{{name}}/unload",
        unload,
        _TAG,
        "unload",
        _POST,
        tensors.UnloadRequest,
        answer=Any,
    ),
)
