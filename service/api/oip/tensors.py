"""Open Inference Protocol requests to rows, and rows to answers: JSON, or JSON followed by the tensors' bytes."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from service.api.http.body import parse_json
from service.api.http.problems import describe
from service.api.oip.schemas import InferRequest, Input, RequestedOutput
from service.artifact.card import INPUT, OUTPUT, ModelCard
from service.domain.errors import InvalidContent, InvalidInference
from service.domain.latents import FloatRows

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
DATATYPE: Final = "FP32"

_WIRE: Final = np.dtype("<f4")
_MAX_CACHED_BYTES: Final = 512  # bytes of JSON that may be remembered
_LENGTH: Final = re.compile(r"[0-9]{1,12}")
_NUMBERS: Final = frozenset((int, float))

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inference:
    """A request that can be run.

    Args:
        id: to be echoed, or None.
        rows: (N, C, H, W), finite float32.
        steps: applications of f, ≥ 1.
        timeout_us: 0 for none.
        binary: the answer's rows follow its JSON as bytes.
    """

    id: str | None
    rows: FloatRows
    steps: int
    timeout_us: int
    binary: bool


def header_length(values: Sequence[str]) -> int | None:
    """How many bytes of the body are JSON; None: all of them.

    Args:
        values: of all headers `Inference-Header-Content-Length`.

    Raises:
        InvalidInference: several, or not a number above 0.
    """
    if not values:
        return None
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]) or int(values[0]) == 0:
        raise InvalidInference(f"{HEADER_LENGTH}: must be given once, as the JSON's bytes in decimal digits, above 0")
    return int(values[0])


def read_request(body: bytes, json_length: int | None, card: ModelCard, *, max_rows: int, max_steps: int) -> Inference:
    """Read one infer request.

    Args:
        body: the whole body, inflated.
        json_length: bytes of it that are JSON, or None for all.
        card: of the model that is asked.
        max_rows: most rows of one request.
        max_steps: most applications of f.

    Raises:
        MalformedRequest: not JSON.
        InvalidInference: names, datatypes, shapes, sizes, values or parameters that cannot be; the text says which.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise InvalidInference(f"{HEADER_LENGTH}: {length} bytes of JSON, but the body has only {len(body)}")
    head = body[:length]
    asked = _parse_cached(head) if length <= _MAX_CACHED_BYTES else parse(head, InferRequest)
    if asked.parameters.steps > max_steps:
        raise InvalidInference(f"parameters.steps: must be at most {max_steps}")
    (x,) = _check_names(asked.inputs, INPUT, "inputs")
    binary = asked.parameters.binary_data_output
    for output in _check_names(asked.outputs or [RequestedOutput(name=OUTPUT)], OUTPUT, "outputs"):
        binary = binary if output.parameters.binary_data is None else output.parameters.binary_data
    shape = _shape(x, card, max_rows)
    rows = _rows(x, shape, body, length, mixed=json_length is not None)
    if not np.isfinite(rows).all():
        raise InvalidInference("inputs.0: holds values that are not finite in float32")
    return Inference(
        id=asked.id, rows=rows, steps=asked.parameters.steps, timeout_us=asked.parameters.timeout, binary=binary
    )


def write_answer(request: Inference, card: ModelCard, rows: FloatRows) -> tuple[bytes, int | None]:
    """The body of the answer, and how many of its bytes are JSON; None: all of them."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": DATATYPE, "shape": list(rows.shape)}
    data = np.ascontiguousarray(rows, _WIRE)
    if request.binary:
        output["parameters"] = {"binary_data_size": data.nbytes}
    else:
        output["data"] = data.ravel().tolist()
    answer: dict[str, Any] = {"model_name": card.name, "model_version": card.version}
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer | {"outputs": [output]}, separators=(",", ":")).encode("ascii")
    if request.binary:
        return head + data.tobytes(), len(head)
    return head, None


def parse(body: bytes, schema: type[Schema]) -> Schema:
    """A JSON body as ``schema``; an empty one counts as `{}`.

    Raises:
        MalformedRequest: not JSON.
        InvalidInference: not what the schema says.
    """
    try:
        return schema.model_validate(parse_json(body) if body else {})
    except (ValidationError, InvalidContent) as exc:
        raise InvalidInference(describe(exc).detail) from exc


@lru_cache(maxsize=256)  # before binary tensors clients say the same all day, and a request does not change
def _parse_cached(body: bytes) -> InferRequest:
    return parse(body, InferRequest)


NamedTensor = TypeVar("NamedTensor", Input, RequestedOutput)


def _check_names(tensors: Sequence[NamedTensor], name: str, where: str) -> Sequence[NamedTensor]:
    """The tensors, of which there must be one, of this name."""
    for place, tensor in enumerate(tensors):
        if tensor.name != name:
            raise InvalidInference(f"{where}.{place}.name: no {tensor.name[:80]!r}; there is {name}")
        if place:
            raise InvalidInference(f"{where}.{place}.name: {name} is given twice")
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
    """The rows of an input, whose bytes, if it has any, begin at ``start``."""
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
    expected = int(np.prod(shape)) * _WIRE.itemsize
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
    expected = int(np.prod(shape))
    if len(numbers) != expected:
        raise InvalidInference(f"inputs.0.data: must hold {expected} numbers for this shape, not {len(numbers)}")
    try:
        with np.errstate(over="ignore"):  # what is beyond float32 is found infinite
            return np.array(numbers, np.float64).astype(np.float32).reshape(shape)
    except OverflowError as exc:
        raise InvalidInference("inputs.0.data: holds a number beyond the range of numbers") from exc


def _flatten(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Numbers nested like the shape, without the nesting; flat ones as they are."""
    if not any(type(item) is list for item in data):
        return data
    level: list[Any] = [data]
    for size in shape:
        if any(type(part) is not list or len(part) != size for part in level):
            raise InvalidInference("inputs.0.data: is neither flat nor nested like the shape")
        level = list(chain.from_iterable(level))
    return level
