"""Pydantic models of the Open Inference Protocol requests and responses.

The docstrings and descriptions here are part of the OpenAPI document.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from service.artifact.card import INPUT, OUTPUT

_MAX_ITEMS: Final = 16  # checked before the items, because a body can hold a million invalid ones

# Only the document states these limits. `service.api.oip.tensors` checks them, with errors in the protocol's terms.
_SHAPE: Final[JsonDict] = {"minItems": 4, "maxItems": 4, "items": {"type": "integer", "minimum": 1}}
_ONE: Final[JsonDict] = {"maxItems": 1}

Data = Annotated[
    list[Any] | None,
    Field(description="Numbers in row-major order, flat or nested like the shape; absent for binary data."),
]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputParameters(_StrictModel):
    """Parameters of an input."""

    binary_data_size: Annotated[
        int | None, Field(ge=0, description="Number of bytes after the JSON, little-endian, instead of `data`.")
    ] = None


class Input(_StrictModel):
    """The rows: N×C×H×W."""

    name: Annotated[str, Field(description="`x`", json_schema_extra={"const": INPUT})]
    shape: Annotated[list[int], Field(max_length=_MAX_ITEMS, description="N, C, H, W.", json_schema_extra=_SHAPE)]
    datatype: Annotated[str, Field(description="`FP32`", json_schema_extra={"const": "FP32"})]
    parameters: InputParameters = InputParameters()
    data: Data = None


class OutputParameters(_StrictModel):
    """Parameters of an output."""

    binary_data: bool | None = None


class RequestedOutput(_StrictModel):
    """A requested output."""

    name: Annotated[str, Field(description="`y`", json_schema_extra={"const": OUTPUT})]
    parameters: OutputParameters = OutputParameters()


class InferParameters(_StrictModel):
    """Parameters of the inference."""

    steps: Annotated[int, Field(ge=1, description="Number of applications of f.")] = 1
    timeout: Annotated[int, Field(ge=0, description="Timeout in microseconds; 0 for none.")] = 0
    priority: Annotated[int, Field(ge=0, description="Accepted, but without effect.")] = 0
    binary_data_output: Annotated[bool, Field(description="Whether outputs without `binary_data` are binary.")] = False


class InferRequest(_StrictModel):
    """Apply f to rows, `steps` times."""

    id: Annotated[str | None, Field(description="Repeated in the response.")] = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[Input], Field(min_length=1, max_length=_MAX_ITEMS, json_schema_extra=_ONE)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=_MAX_ITEMS, json_schema_extra=_ONE)] | None = None


class Output(BaseModel):
    """The output rows: N×C×H×W."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferAnswer(BaseModel):
    """The result of an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


class ServerMetadata(BaseModel):
    """Name, version and protocol extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor; −1 means any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(BaseModel):
    """A tensor of one row."""

    name: str
    data_type: str
    format: str
    dims: list[int]


class ModelConfig(BaseModel):
    """Configuration of a model for clients of Triton."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: dict[str, Any]
    model_transaction_policy: dict[str, bool]


class Spent(BaseModel):
    """Number and total duration, in ns."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Durations of the requests of one model, by part."""

    success: Spent
    fail: Spent
    queue: Spent
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent
    cache_hit: Spent
    cache_miss: Spent


class BatchStatistics(BaseModel):
    """Model calls with one batch size."""

    batch_size: int
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent


class ModelStatistics(BaseModel):
    """Statistics of one version since it was loaded."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class StatisticsAnswer(BaseModel):
    """Statistics of models."""

    model_stats: list[ModelStatistics]


class IndexRequest(_StrictModel):
    """Filter of the index."""

    ready: Annotated[bool, Field(description="Only versions that serve.")] = False


class IndexEntry(BaseModel):
    """One version that serves or is in the model directory."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
    reason: str


class LoadParameters(_StrictModel):
    """No parameters: the files of a model define it."""


class LoadRequest(_StrictModel):
    """Body of a load request."""

    parameters: LoadParameters = LoadParameters()


class UnloadParameters(_StrictModel):
    """Parameters of an unload request; no model depends on another, so they have no effect."""

    unload_dependents: bool = False


class UnloadRequest(_StrictModel):
    """Body of an unload request."""

    parameters: UnloadParameters = UnloadParameters()
