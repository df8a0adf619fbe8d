"""The endpoints of the Open Inference Protocol v2 for clients of KServe and Triton: one input `x`,
one output `y`.

Those of its model repository extension list, load and unload models at run time. With API keys,
loading and unloading need the scope `admin`, which `service.api.access` checks.

`infer` is here as stages, which the pipeline runs for every request of one turn of the event loop.
Its rows use the same queue as those of the native endpoints. The Content-Type of its body is
ignored, because some clients send none.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Self

import numpy as np
from pydantic import BaseModel
from starlette.responses import Response

from service import __version__
from service.api.access import check_host
from service.api.app_state import AppState, require_device
from service.api.info.openapi import BINARY_TENSORS
from service.api.info.routes import PROBE
from service.api.message import parse_as
from service.api.negotiation import Json, Media
from service.api.oip import tensors
from service.api.pipeline import InputRows, Stages, Work, count_codec
from service.api.request import LARGE_BODY, ApiRequest, Plan
from service.api.table import Endpoint, Handler
from service.artifact.card import INPUT, OUTPUT, Card
from service.domain.tasks import StepParams
from service.models.registry import ModelChange, ServedModel

_TAG: Final = "Open Inference Protocol"
# Paths of the highest version of a model, and of a given one.
_MODEL: Final = "/v2/models/{name}"
_VERSION: Final = "/v2/models/{name}/versions/{version}"


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
    api.services.require_serving()
    return _statistics(api.services.registry.models.values())


async def metadata(api: ApiRequest) -> tensors.ModelMetadata:
    """Inputs and outputs of a model."""
    model = api.named_model()
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
    require_device(api.named_model())
    return Response()


async def config(api: ApiRequest) -> Json:
    """Triton's configuration of a model."""
    model = api.named_model()
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
        "max_batch_size": api.settings.max_images,
        "input": [{"name": INPUT, **form}],
        "output": [{"name": OUTPUT, **form}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0, "preserve_ordering": False},
        "model_transaction_policy": {"decoupled": False},
    }


async def statistics(api: ApiRequest) -> Json:
    """Statistics of one version, or of every version of a model, since it was loaded."""
    model = api.named_model()
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


@dataclass(slots=True, kw_only=True, eq=False)
class InferWork(Work):
    """An inference request whose JSON has been read."""

    inference: tensors.InferRequest
    body: bytes

    def make_plan(self) -> Plan:
        """Count rows, or tiles, and bytes."""
        x = self.inference.x
        rows, _, height, width = x.shape
        each = _ARRAY_BYTES
        if x.data is not None:
            each += _JSON_VALUE_BYTES
        if not self.inference.is_binary:
            each += _JSON_BYTES
        held = prod(x.shape) * each
        if self.is_tiled:
            rows, tile_bytes = self.model.plan_tiles([(height, width)] * rows)
            held += tile_bytes
        return Plan(rows=rows, bytes=held)

    @classmethod
    def decode(cls, works: Sequence[Self]) -> None:
        """Read the rows of several requests."""
        start = time.perf_counter()
        _read_rows(works)
        count_codec("decode", works, start)

    def decode_large(self) -> None:
        """Read the rows of one request."""
        _read_rows([self])

    @classmethod
    def encode(cls, works: Sequence[Self]) -> None:
        """Write the bodies of several responses."""
        for work in works:
            rows = np.asarray(work.result.rows)
            work.content, length = tensors.write_response(work.inference, work.model.card, rows)
            if length is not None:
                work.result_headers = [(tensors.HEADER_FIELD, b"%d" % length)]
                work.media_type = BINARY_TENSORS

    def finish(self) -> None:
        """Let the statistics count the tensors."""
        seconds = self.api.seconds
        self.model.statistics.tensors(seconds["decode"], seconds["encode"])


def _read_rows(works: Sequence[InferWork]) -> None:
    read = [tensors.read_rows(work.inference.x, work.body) for work in works]
    # One check of all takes little longer than of one.
    tensors.check_rows(read[0] if len(read) == 1 else np.concatenate(read))
    for work, rows in zip(works, read, strict=True):
        work.inputs = InputRows(rows=rows)


def _row_shape(card: Card) -> tuple[int, int, int]:
    """(C, H, W) of one row; −1 for any number."""
    return card.shape if card.tiles is None else (card.shape[0], -1, -1)


def _check(api: ApiRequest) -> None:
    # The Content-Type is ignored. The JSON before binary tensors is short.
    if api.headers.get(tensors.HEADER_FIELD):
        api.inline_body = _LARGE_BINARY


def infer(api: ApiRequest, body: bytes) -> InferWork:
    """Apply f to the rows of the input `x`, `steps` times.

    Tensors are JSON numbers or little-endian bytes after the JSON.
    """
    model = api.resolve(api.ref)
    settings = api.settings.for_images(model.card.tiles)
    limits = tensors.Limits(
        _row_shape(model.card), settings.max_images, settings.max_steps, settings.max_pixels
    )
    inference = tensors.read_head(body, api.headers.getlist(tensors.HEADER_FIELD), limits)
    values = prod(inference.x.shape)
    is_tiled = model.card.tiles is not None
    if inference.parameters.timeout:
        timeout = min(inference.parameters.timeout, _MAX_TIMEOUT_US) / 1e6
        api.deadline = min(api.deadline, api.arrival + timeout)
    return InferWork(
        api=api,
        model=model,
        params=StepParams(steps=inference.parameters.steps),
        inference=inference,
        body=body,
        is_large=is_tiled or len(body) > api.inline_body,
        has_large_response=is_tiled
        or (
            4 * values > _LARGE_BINARY if inference.is_binary else values * _JSON_BYTES > LARGE_BODY
        ),
        is_tiled=is_tiled,
    )


# The model repository

_MAX_REPOSITORY_BYTES: Final = 1 << 14  # of a body; parsing so many takes a millisecond


async def index(api: ApiRequest) -> list[tensors.IndexEntry]:
    """List every version that serves or is in the model directory."""
    options = await _read(api, tensors.IndexRequest)
    return [
        tensors.IndexEntry(name=name, version=version, state=entry.state, reason=entry.reason)
        for entry in await api.services.registry.index()
        for name, _, version in [entry.ref.partition("/")]
        if entry.state == "READY" or not options.ready
    ]


async def load(api: ApiRequest) -> Any:
    """Load a model, or its new and changed versions, from the model directory.

    The response is sent when all of them serve. Until then, and if one cannot be verified, the
    previous ones serve.
    """
    await _read(api, tensors.LoadRequest)
    # without keys, anyone may call it
    return await _change(api, loads=True, may_be_new=api.settings.api_keys_file is not None)


async def unload(api: ApiRequest) -> Any:
    """Unload every version of a model after its requests in flight.

    The default model cannot be unloaded.
    """
    await _read(api, tensors.UnloadRequest)
    return await _change(api, loads=False)


async def _change(api: ApiRequest, **change: bool) -> Any:
    services = api.services
    make = services.change_everywhere or services.registry.change
    await make(ModelChange(api.ref, **change))
    api.model = api.ref  # of a model that exists: it is a label of metrics, too
    return {}


async def _read(api: ApiRequest, schema: type[BaseModel]) -> Any:
    """The body of a call, whatever its Content-Type, if the caller may make it."""
    settings = api.settings
    if "key" not in settings.keyed:
        check_host(api.headers, public=settings.public)
    api.services.require_serving()
    return parse_as(schema, await api.read_body(_MAX_REPOSITORY_BYTES))


# The table


def _of_model(
    path: str, run: Stages | Handler, name: str, **declared: Any
) -> tuple[Endpoint, Endpoint]:
    """The endpoint of the highest version of a model, and that of a given one."""
    return (
        Endpoint(_MODEL + path, run, _TAG, name, **declared),
        Endpoint(_VERSION + path, run, _TAG, f"{name}_version", **declared),
    )


_REPOSITORY: Final = "/v2/repository"
_POST: Final = ("POST",)
ENDPOINTS: Final = (
    Endpoint("/v2", server, _TAG, "server", answer=tensors.ServerMetadata),
    Endpoint(
        "/v2/health/live", live, _TAG, "live", PROBE, answer=tensors.ServerLive, access="health"
    ),
    Endpoint(
        "/v2/health/ready", ready, _TAG, "ready", PROBE, answer=tensors.ServerReady, access="health"
    ),
    # As with Triton, a model named `stats` is not reachable.
    Endpoint("/v2/models/stats", all_statistics, _TAG, "all_statistics", answer=Json),
    *_of_model("", metadata, "metadata", answer=tensors.ModelMetadata),
    *_of_model("/ready", model_ready, "model_ready", formats=()),
    *_of_model("/config", config, "config", answer=Json),
    *_of_model("/stats", statistics, "statistics", answer=Json),
    *_of_model(
        "/infer",
        Stages(_check, infer),
        "infer",
        methods=_POST,
        request=tensors.InferRequest,
        bodies=(BINARY_TENSORS,),
        answer=tensors.InferAnswer,
        formats=(Media.JSON, BINARY_TENSORS),
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
        access="admin",
    ),
    Endpoint(
        f"{_REPOSITORY}/models/{{name}}/unload",
        unload,
        _TAG,
        "unload",
        _POST,
        tensors.UnloadRequest,
        answer=Any,
        access="admin",
    ),
)
