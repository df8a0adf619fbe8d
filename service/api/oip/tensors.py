"""The bodies of the Open Inference Protocol: schemas, requests to rows, and rows to responses.

A body is JSON, or JSON followed by the bytes of the tensors (the extension "binary tensor data").
The docstrings and descriptions of the schemas are part of the OpenAPI document.
"""

import math
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt
from pydantic.config import JsonDict

from service.api.message import MAX_VALUES, compact_json, parse_as
from service.api.native.schemas import Steps, StrictModel
from service.api.negotiation import Json
from service.artifact.card import OUTPUT, Card
from service.domain.errors import InvalidInference
from service.domain.latents import MAX_MAGNITUDE, FloatRows, is_bounded
from service.domain.tiles import MAX_SIDE

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
HEADER_FIELD: Final = HEADER_LENGTH.lower().encode("ascii")
DATATYPE: Final = "FP32"

_MAX_ITEMS: Final = 16  # checked before the items, because a body can hold a million invalid ones
# Only the document states these limits. `_read_json` checks them, with errors in the protocol's
# terms.
_ONE: Final[JsonDict] = {"maxItems": 1}
_FOUR: Final[JsonDict] = {"minItems": 4, "maxItems": 4}


class InputParameters(StrictModel):
    """Parameters of an input."""

    binary_data_size: NonNegativeInt | None = None
    """Number of bytes after the JSON, little-endian, instead of `data`."""


class Input(StrictModel):
    """The rows: N×C×H×W."""

    name: Literal["x"]
    """`x`"""
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(json_schema_extra=_FOUR)]
    """N, C, H, W."""
    datatype: Literal["FP32"]
    """`FP32`"""
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None
    """Numbers in row-major order, flat or nested like the shape; absent for binary data."""


class OutputParameters(StrictModel):
    """Parameters of an output."""

    binary_data: bool | None = None


class RequestedOutput(StrictModel):
    """A requested output."""

    name: Literal["y"]
    """`y`"""
    parameters: OutputParameters = OutputParameters()


class InferParameters(StrictModel):
    """Parameters of the inference."""

    steps: Steps = 1
    """Number of applications of f."""
    timeout: NonNegativeInt = 0
    """Timeout in microseconds; 0 for none."""
    priority: NonNegativeInt = 0
    """Accepted, but without effect."""
    binary_data_output: bool = False
    """Whether outputs without `binary_data` are binary."""


class InferRequest(StrictModel):
    """Apply f to rows, `steps` times."""

    id: str | None = None
    """Repeated in the response."""
    model_name: str | None = None
    """Accepted, but without effect: the path names it."""
    model_version: str | None = None
    """Accepted, but without effect: the path names it."""
    parameters: InferParameters = InferParameters()
    inputs: Annotated[
        list[Input], Field(min_length=1, max_length=_MAX_ITEMS, json_schema_extra=_ONE)
    ]
    outputs: (
        Annotated[list[RequestedOutput], Field(max_length=_MAX_ITEMS, json_schema_extra=_ONE)]
        | None
    ) = None

    # Once for many requests: see `_read_cached`.
    @cached_property
    def x(self) -> Input:
        """The input."""
        return self.inputs[0]

    @cached_property
    def is_binary(self) -> bool:
        """Whether the rows of the response follow its JSON as bytes."""
        wanted = self.outputs[0].parameters.binary_data if self.outputs else None
        return self.parameters.binary_data_output if wanted is None else wanted


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


class ServerLive(BaseModel):
    """The process is alive."""

    live: Literal[True] = True


class ServerReady(BaseModel):
    """The models serve."""

    ready: Literal[True] = True


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


class IndexRequest(StrictModel):
    """Filter of the index."""

    ready: bool = False
    """Only versions that serve."""


class IndexEntry(BaseModel):
    """One version that serves or is in the model directory."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
    reason: str


class LoadParameters(StrictModel):
    """No parameters: the files of a model define it."""


class LoadRequest(StrictModel):
    """Body of a load request."""

    parameters: LoadParameters = LoadParameters()


class UnloadParameters(StrictModel):
    """Parameters of an unload request; no model depends on another, so they have no effect."""

    unload_dependents: bool = False


class UnloadRequest(StrictModel):
    """Body of an unload request."""

    parameters: UnloadParameters = UnloadParameters()


# Requests to rows
#
#   | JSON: names, shape, parameters | float32 of `x`, little-endian |
#   0                                ^ Inference-Header-Content-Length

_WIRE: Final = np.dtype("<f4")
_LENGTH: Final = re.compile(r"(?=.*[1-9])[0-9]{1,12}")
_NUMBERS: Final = frozenset((int, float))
_MAX_ANY_SIZE: Final = 2**20  # numbers of images of any size in JSON; more come as binary tensors
_MAX_CACHED_BYTES: Final = 512  # of JSON; a longer one holds data and is not cached

Piece = bytes | memoryview


class Limits(NamedTuple):
    """Limits of a request to a model: the shape of its rows (C, H, W) with −1 for any number, then
    ``pixels`` is how many all rows together may have.
    """

    shape: tuple[int, int, int]
    rows: int
    steps: int
    pixels: int


def read_head(
    body: bytes,
    lengths: Sequence[str],
    limits: Limits,
) -> InferRequest:
    """Parse and validate a request, but for the values of its rows; ``lengths`` are the headers
    `HEADER_LENGTH`.

    Raises `MalformedRequest` or `InvalidInference`; the text of the latter names what is invalid.
    """
    length = _json_length(lengths) if lengths else len(body)
    rest = len(body) - length
    if rest < 0:
        raise InvalidInference(
            f"{HEADER_LENGTH}: {length} bytes of JSON, but the body has only {len(body)}"
        )
    read = _read_cached if length <= _MAX_CACHED_BYTES else _read_json
    request = read(body[:length], limits)
    if request.x.data is not None:
        if rest:
            raise InvalidInference(f"{rest} bytes follow the JSON that belong to no input")
    elif not lengths:
        raise InvalidInference(
            f"inputs.0.parameters.binary_data_size: needs the header {HEADER_LENGTH}"
        )
    elif rest != (size := _bytes_of(request.x.shape)):
        raise InvalidInference(f"{rest} bytes follow the JSON, but inputs.0 says {size}")
    return request


def read_rows(x: Input, body: bytes) -> FloatRows:
    """The rows of a request, (N, C, H, W); a view of the body if the bytes of the tensor are
    aligned in it.

    Raises `InvalidInference`: no numbers, too many or too few of them.
    """
    if x.data is not None:
        return _from_json(x.data, x.shape)
    rows = np.frombuffer(body, _WIRE, offset=len(body) - _bytes_of(x.shape)).reshape(x.shape)
    # numpy computes with unaligned values several times as slowly as it copies them
    return rows if rows.flags.aligned else rows.copy()


def check_rows(rows: FloatRows) -> None:
    """Raise `InvalidInference` for rows that are not finite or too large."""
    if not is_bounded(rows):
        raise InvalidInference(
            f"inputs.0: holds values that are not finite or beyond ±{MAX_MAGNITUDE:.0f}"
        )


def _json_length(values: Sequence[str]) -> int:
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]):
        raise InvalidInference(
            f"{HEADER_LENGTH}: must be given once, as the JSON's bytes in decimal digits, above 0"
        )
    return int(values[0])


def _read_json(head: bytes, limits: Limits) -> InferRequest:
    # The largest legal body nests every number of `max_rows` rows like the shape: arrays of rows,
    # channels and lines.
    channels, height, width = limits.shape
    values = _MAX_ANY_SIZE
    if width > 0:
        values = limits.rows * (1 + channels * (1 + height * (1 + width)))
    request = parse_as(InferRequest, head, max_values=MAX_VALUES + values)
    if request.parameters.steps > limits.steps:
        raise InvalidInference(f"parameters.steps: must be at most {limits.steps}")
    for name, given in (("inputs", request.inputs), ("outputs", request.outputs or ())):
        if len(given) > 1:
            raise InvalidInference(f"{name}.1.name: given twice")
    _check_input(request.x, limits)
    return request


# With binary tensors a client sends the same JSON with every request, and what is read of it never
# changes.
_read_cached: Final = lru_cache(maxsize=256)(_read_json)


def _bytes_of(shape: Sequence[int]) -> int:
    return math.prod(shape) * _WIRE.itemsize


def _check_input(x: Input, limits: Limits) -> None:
    row_shape = limits.shape
    if len(x.shape) != 4 or any(
        want not in (-1, size) for want, size in zip(row_shape, x.shape[1:], strict=True)
    ):
        dims = ", ".join(
            name if size < 0 else str(size) for name, size in zip("CHW", row_shape, strict=True)
        )
        raise InvalidInference(f"inputs.0.shape: must be [N, {dims}] with N of at least 1")
    if x.shape[0] > limits.rows:
        raise InvalidInference(f"inputs.0.shape: at most {limits.rows} rows")
    if -1 in row_shape:
        _check_size(x.shape, limits.pixels)
    size = x.parameters.binary_data_size
    expected = _bytes_of(x.shape)
    if (x.data is None) == (size is None):
        raise InvalidInference("inputs.0: needs either data or parameters.binary_data_size")
    if size not in (None, expected):
        raise InvalidInference(
            f"inputs.0.parameters.binary_data_size: must be {expected} for this shape, not {size}"
        )


def _check_size(shape: Sequence[int], max_pixels: int) -> None:
    """Check the size of images of any size."""
    count, _, height, width = shape
    if max(height, width) > MAX_SIDE:
        raise InvalidInference(f"inputs.0.shape: at most {MAX_SIDE} pixels a side")
    if count * height * width > max_pixels:
        raise InvalidInference(f"inputs.0.shape: at most {max_pixels} pixels (IGN_MAX_PIXELS)")


def _from_json(data: list[Any], shape: list[int]) -> FloatRows:
    values = np.array(data, dtype=object)
    count = math.prod(shape)
    if [*values.shape] not in ([count], shape):
        raise InvalidInference(
            f"inputs.0.data: must hold {count} numbers for this shape, flat or nested like it"
        )
    if not set(map(type, values.flat)) <= _NUMBERS:
        raise InvalidInference("inputs.0.data: holds something that is no number")
    try:
        # a value beyond float32 becomes infinite, and the caller rejects it
        with np.errstate(over="ignore"):
            return values.astype(np.float64).astype(np.float32).reshape(shape)
    except OverflowError as exc:
        raise InvalidInference("inputs.0.data: holds a number beyond the range of numbers") from exc


# Rows to responses

_SLICE: Final = 4096  # numbers that become JSON in one call


@lru_cache(maxsize=256)
def _answer_head(
    name: str, version: str, request_id: str | None, shape: tuple[int, ...], is_binary: bool
) -> bytes:
    tensor: Json = {"name": OUTPUT, "datatype": DATATYPE, "shape": shape}
    if is_binary:
        tensor["parameters"] = {"binary_data_size": _bytes_of(shape)}
    else:
        tensor["data"] = []
    answer: Json = {"model_name": name, "model_version": version}
    if request_id is not None:
        answer["id"] = request_id
    return compact_json(answer | {"outputs": [tensor]})


def write_response(
    request: InferRequest, card: Card, rows: FloatRows
) -> tuple[list[Piece], int | None]:
    """The pieces of the body, and how many of its bytes are JSON, None for all; a binary one ends
    in a view of rows.
    """
    answer_head = _answer_head if request.id is None else _answer_head.__wrapped__
    head = answer_head(card.name, card.version, request.id, rows.shape, request.is_binary)
    values = np.ascontiguousarray(rows, _WIRE)
    if request.is_binary:
        return [head, values.data.cast("B")], len(head)
    flat = values.ravel()
    # In slices, because one call of `json` holds the interpreter lock until it ends: for 64 colour
    # rows, half a second.
    slices = (flat[start : start + _SLICE].tolist() for start in range(0, len(flat), _SLICE))
    numbers = b",".join(compact_json(each)[1:-1] for each in slices)
    return [head.removesuffix(b"]}]}"), numbers, b"]}]}"], None
