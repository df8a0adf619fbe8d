"""Convert Open Inference Protocol requests to rows and rows to responses.

A body is JSON, or JSON followed by the binary tensors (the extension "binary tensor data").
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel

from service.api.body import MAX_VALUES
from service.api.oip.schemas import InferRequest, Input, RequestedOutput
from service.api.request import parse_as
from service.artifact.card import INPUT, OUTPUT, ModelCard
from service.domain.errors import InvalidContent, InvalidInference
from service.domain.latents import MAX_MAGNITUDE, FloatRows, is_bounded

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
DATATYPE: Final = "FP32"

_WIRE: Final = np.dtype("<f4")
_MAX_CACHED_BYTES: Final = 512  # of JSON; a longer one holds data and is not cached
_LENGTH: Final = re.compile(r"[0-9]{1,12}")
_SLICE: Final = 4096  # numbers that become JSON in one call
_NUMBERS: Final = frozenset((int, float))
_OUTPUTS: Final = b'"outputs":'
_ALL_OUTPUTS: Final = (RequestedOutput(name=OUTPUT),)
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make an encoder for each call

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inference:
    """A validated inference request.

    Args:
        id: of the request, which the response repeats; or None.
        rows: (N, C, H, W) finite float32.
        steps: applications of f, ≥ 1.
        timeout_us: microseconds; 0 for none.
        binary: the rows of the response follow its JSON as bytes.
    """

    id: str | None
    rows: FloatRows
    steps: int
    timeout_us: int
    binary: bool


def header_length(values: Sequence[str]) -> int | None:
    """The number of bytes of the body that are JSON; None for all of them.

    Args:
        values: of the headers `Inference-Header-Content-Length`.

    Raises:
        InvalidInference: several headers, or not a number above 0.
    """
    if not values:
        return None
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]) or int(values[0]) == 0:
        raise InvalidInference(f"{HEADER_LENGTH}: must be given once, as the JSON's bytes in decimal digits, above 0")
    return int(values[0])


def read_request(body: bytes, json_length: int | None, card: ModelCard, *, max_rows: int, max_steps: int) -> Inference:
    """Parse and validate one inference request.

    Args:
        body: the whole body, decompressed.
        json_length: number of its bytes that are JSON, or None for all.
        card: of the model.
        max_rows: largest number of rows of one request.
        max_steps: largest number of applications of f.

    Raises:
        MalformedRequest: not JSON.
        InvalidInference: an invalid name, datatype, shape, size, value or parameter; the text names it.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise InvalidInference(f"{HEADER_LENGTH}: {length} bytes of JSON, but the body has only {len(body)}")
    head = body[:length]
    # The largest legal body nests every number of `max_rows` rows like the shape.
    max_values = MAX_VALUES + max_rows * _nested_values(card)
    request = _parse_cached(head) if length <= _MAX_CACHED_BYTES else parse(head, InferRequest, max_values=max_values)
    if request.parameters.steps > max_steps:
        raise InvalidInference(f"parameters.steps: must be at most {max_steps}")
    (x,) = _check_names(request.inputs, INPUT, "inputs")
    binary = request.parameters.binary_data_output
    for output in _check_names(request.outputs or _ALL_OUTPUTS, OUTPUT, "outputs"):
        binary = binary if output.parameters.binary_data is None else output.parameters.binary_data
    shape = _shape(x, card, max_rows)
    rows = _rows(x, shape, body, length, mixed=json_length is not None)
    if not is_bounded(rows):
        raise InvalidInference(f"inputs.0: holds values that are not finite or beyond ±{MAX_MAGNITUDE:.0f}")
    return Inference(
        id=request.id, rows=rows, steps=request.parameters.steps, timeout_us=request.parameters.timeout, binary=binary
    )


def write_answer(request: Inference, card: ModelCard, rows: FloatRows) -> tuple[bytes, int | None]:
    """The body of the response, and how many of its bytes are JSON; None for all of them."""
    data = np.ascontiguousarray(rows, _WIRE)
    head = _answer_head(card.name, card.version, rows.shape, data.nbytes if request.binary else None)
    if request.id is not None:
        head = head.replace(_OUTPUTS, b'"id":%s,%s' % (_to_json(request.id).encode("ascii"), _OUTPUTS), 1)
    if request.binary:
        return head + data.tobytes(), len(head)
    before, after = head[:-4], head[-4:]  # the array of the data is empty, and the last of the JSON
    values = data.ravel()
    # In slices, because one call of `json` holds the interpreter lock until it ends: for 64 colour rows, half a second.
    slices = (values[start : start + _SLICE].tolist() for start in range(0, len(values), _SLICE))
    texts = [_to_json(each)[1:-1] for each in slices]
    return before + ",".join(texts).encode("ascii") + after, None


@lru_cache(maxsize=256)
def _answer_head(name: str, version: str, shape: tuple[int, ...], size: int | None) -> bytes:
    """The JSON of a response without id: with the size of its binary data, or with an empty array of data."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": DATATYPE, "shape": shape}
    if size is None:
        output["data"] = []
    else:
        output["parameters"] = {"binary_data_size": size}
    return _to_json({"model_name": name, "model_version": version, "outputs": [output]}).encode("ascii")


def _nested_values(card: ModelCard) -> int:
    """Number of JSON values of one row: its numbers, and the arrays for the row, its channels and their lines."""
    channels, height, width = card.shape
    return 1 + channels * (1 + height * (1 + width))


def parse(body: bytes, schema: type[Schema], *, max_values: int = MAX_VALUES) -> Schema:
    """Parse a JSON body as ``schema``, with at most ``max_values`` values; an empty body counts as `{}`.

    Raises:
        MalformedRequest: not JSON.
        InvalidInference: the body does not fit the schema.
    """
    try:
        return parse_as(schema, body, max_values=max_values)
    except InvalidContent as exc:
        raise InvalidInference(exc.detail) from exc


# With binary tensors a client sends the same JSON with every request, and the parsed request is immutable.
@lru_cache(maxsize=256)
def _parse_cached(body: bytes) -> InferRequest:
    return parse(body, InferRequest)


NamedTensor = TypeVar("NamedTensor", Input, RequestedOutput)


def _check_names(tensors: Sequence[NamedTensor], name: str, where: str) -> Sequence[NamedTensor]:
    """Return the tensors if there is one, with this name.

    Raises:
        InvalidInference: another name, or the name twice.
    """
    for index, tensor in enumerate(tensors):
        if tensor.name != name:
            raise InvalidInference(f"{where}.{index}.name: no {tensor.name[:80]!r}; there is {name}")
        if index:
            raise InvalidInference(f"{where}.{index}.name: {name} is given twice")
    return tensors


def _shape(x: Input, card: ModelCard, max_rows: int) -> tuple[int, ...]:
    if x.datatype != DATATYPE:
        raise InvalidInference(f"inputs.0.datatype: must be {DATATYPE}, not {x.datatype[:80]!r}")
    if len(x.shape) != 4 or tuple(x.shape[1:]) != card.shape or x.shape[0] < 1:
        raise InvalidInference(f"inputs.0.shape: must be [N, {', '.join(map(str, card.shape))}] with N of at least 1")
    if x.shape[0] > max_rows:
        raise InvalidInference(f"inputs.0.shape: at most {max_rows} rows")
    return tuple(x.shape)


def _rows(x: Input, shape: tuple[int, ...], body: bytes, start: int, *, mixed: bool) -> FloatRows:
    """The rows of an input; its bytes, if it has any, begin at ``start`` of the body.

    ``mixed``: the header with the length of the JSON was sent, so bytes may follow it.
    """
    size = x.parameters.binary_data_size
    if size is None:
        if start < len(body):
            raise InvalidInference(f"{len(body) - start} bytes follow the JSON that belong to no input")
        return _from_json(x.data, shape)
    if x.data is not None:
        raise InvalidInference("inputs.0: has both data and parameters.binary_data_size")
    if not mixed:
        raise InvalidInference(f"inputs.0.parameters.binary_data_size: needs the header {HEADER_LENGTH}")
    return _from_bytes(body, start, size, shape)


def _from_bytes(body: bytes, start: int, size: int, shape: tuple[int, ...]) -> FloatRows:
    expected = math.prod(shape) * _WIRE.itemsize
    if size != expected:
        raise InvalidInference(f"inputs.0.parameters.binary_data_size: must be {expected} for this shape, not {size}")
    if len(body) - start != size:
        raise InvalidInference(f"{len(body) - start} bytes follow the JSON, but inputs.0 says {size}")
    return np.frombuffer(body, _WIRE, offset=start).reshape(shape).astype(np.float32)


def _from_json(data: list[Any] | None, shape: tuple[int, ...]) -> FloatRows:
    if data is None:
        raise InvalidInference("inputs.0: needs data, or parameters.binary_data_size")
    numbers = _flatten(data, shape)
    if not set(map(type, numbers)) <= _NUMBERS:
        raise InvalidInference("inputs.0.data: holds something that is no number, or is not nested like the shape")
    expected = math.prod(shape)
    if len(numbers) != expected:
        raise InvalidInference(f"inputs.0.data: must hold {expected} numbers for this shape, not {len(numbers)}")
    try:
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and the caller rejects it
            return np.array(numbers, np.float64).astype(np.float32).reshape(shape)
    except OverflowError as exc:
        raise InvalidInference("inputs.0.data: holds a number beyond the range of numbers") from exc


def _flatten(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Flatten numbers that are nested like the shape; a flat list is returned as it is."""
    if not any(type(item) is list for item in data):
        return data
    level: list[Any] = [data]
    for size in shape:
        if any(type(part) is not list or len(part) != size for part in level):
            raise InvalidInference("inputs.0.data: is neither flat nor nested like the shape")
        level = list(chain.from_iterable(level))
    return level
