"""What an ONNX file may hold, checked in its bytes before onnxruntime parses them.

onnxruntime has no option that refuses operators of other domains, and brings hundreds of its own.
It does refuse weights outside of the file, because `service.runtime.session` names a folder that
holds none, but which forms it refuses depends on its version, and its text does not say what to do.
So the few fields that matter are read here. The `onnx` package, which could read them, is a
dependency of the export only.

An ONNX file is a protobuf message: a sequence of fields, each with a number, a wire type and a
value (https://protobuf.dev/programming-guides/encoding). A value of wire type 2 may be a message
again.
"""

from collections.abc import Iterator
from typing import Final

from service.domain.errors import StartupError

NESTED: Final = {
    "ModelProto": {
        7: "GraphProto",
        8: "OperatorSetIdProto",
        20: "TrainingInfoProto",
        25: "FunctionProto",
    },
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 9: "OperatorSetIdProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
"""The messages of `onnx.proto` on the way to tensors, nodes and operator sets: field number → type
of its value.
"""
# field with the domain of operators
DOMAIN: Final = {"OperatorSetIdProto": 1, "NodeProto": 7, "FunctionProto": 10}
# of a `TensorProto`: where its data is, and whether that is outside of the file
EXTERNAL: Final = {13, 14}
_METADATA: Final = 14  # the field of a `ModelProto` with its entries, whose fields are these
_KEY = 1
_VALUE = 2
_FIXED: Final = {1: 8, 5: 4}  # bytes of a value, by wire type
_VARINT = 0
_BYTES = 2


def check_self_contained(data: bytes) -> None:
    """Raise StartupError, one line without paths, unless all weights are in the file and all
    operators are standard.
    """
    try:
        _check(memoryview(data), "ModelProto", 0)
    except (ValueError, IndexError) as exc:
        raise StartupError("not a model onnxruntime can load: its protobuf is damaged") from exc


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata of an ONNX file; raises StartupError, one line without paths, if it cannot be
    read.
    """
    try:
        fields = fields_of(memoryview(data))
        entries = [
            dict(fields_of(memoryview(value))) for number, value in fields if number == _METADATA
        ]
        return {str(entry[_KEY], "utf-8"): str(entry[_VALUE], "utf-8") for entry in entries}
    except (ValueError, IndexError, KeyError) as exc:
        raise StartupError("not a model onnxruntime can load: its protobuf is damaged") from exc


def _check(message: memoryview, kind: str, depth: int) -> None:
    if depth > 100:  # as protobuf does
        raise ValueError("nested too deeply")
    nested = NESTED.get(kind, {})
    domain = DOMAIN.get(kind)
    for number, value in fields_of(message):
        if number in nested:
            _check(memoryview(value), nested[number], depth + 1)
        # two names of the one standard domain
        elif number == domain and bytes(value) not in (b"", b"ai.onnx"):
            name = bytes(value[:80]).decode("utf-8", "replace")
            raise StartupError(
                f"holds operators of the domain {name!r}; only those of the ONNX standard are run"
            )
        elif kind == "TensorProto" and number in EXTERNAL and any(value):
            raise StartupError("has weights outside of the file; export it with all weights inside")


def fields_of(message: memoryview) -> Iterator[tuple[int, bytes | memoryview]]:
    """Number and value of each field of a message of protobuf; a number comes as its little-endian
    bytes.

    Raises ValueError or IndexError if it is no message.
    """
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        if tag >= 1 << 32:
            raise ValueError("no tag")
        wire_type = tag & 7
        if wire_type == _VARINT:
            number, position = varint(message, position)
            yield tag >> 3, number.to_bytes(10, "little")
            continue
        if wire_type == _BYTES:
            length, position = varint(message, position)
        else:
            length = _FIXED.get(wire_type, len(message))  # groups are not used by ONNX
        end = position + length
        if end > len(message):
            raise ValueError("a field ends beyond its message")
        yield tag >> 3, message[position:end]
        position = end


def varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """A number of up to ten bytes with seven bits in each, the lowest first (LEB128), and the
    position after it: 300 = 0b10_0101100 is AC 02.

    Raises ValueError or IndexError if there is none.
    """
    number = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError("a number is too long")
