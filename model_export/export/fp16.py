"""Convert a model to half precision: weights and arithmetic in float16, input and output in float32."""

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_fp16(data: bytes) -> bytes:
    """Convert all weights and intermediate values to float16; `x`, `y` and the metadata are unchanged.

    The converter is that of onnxruntime, which knows the operators without half precision.
    """
    model: ModelProto = convert_float_to_float16(onnx.load_model_from_string(data), keep_io_types=True)
    _sort_nodes(model)
    onnx.checker.check_model(model, full_check=True)
    half: bytes = model.SerializeToString(deterministic=True)
    return half


def _sort_nodes(model: ModelProto) -> None:
    """Sort the nodes topologically, as ONNX requires. The converter appends its casts at the end."""
    graph = model.graph
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    remaining, ordered = list(graph.node), []
    while remaining:
        blocked = []
        for node in remaining:
            if known.issuperset(node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                blocked.append(node)
        if len(blocked) == len(remaining):
            raise RuntimeError("the converter left a node without its input")
        remaining = blocked
    del graph.node[:]
    graph.node.extend(ordered)
