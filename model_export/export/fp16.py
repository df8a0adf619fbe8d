"""The network in half precision: weights and arithmetic in float16, input and output still in float32."""

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_fp16(data: bytes) -> bytes:
    """The same model with every weight and every step in between in float16; `x`, `y` and the metadata stay.

    onnxruntime brings the converter, so it needs no package more and knows which operators have no half precision.
    """
    model: ModelProto = convert_float_to_float16(onnx.load_model_from_string(data), keep_io_types=True)
    _sort(model)
    onnx.checker.check_model(model, full_check=True)
    half: bytes = model.SerializeToString(deterministic=True)
    return half


def _sort(model: ModelProto) -> None:
    """Every node behind those it takes from, as ONNX wants it: the converter appends its casts at the end."""
    graph = model.graph
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset(node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise RuntimeError("the converter left a node without its input")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)
