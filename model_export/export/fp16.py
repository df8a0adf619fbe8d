"""Convert a model to half precision: weights and arithmetic in float16, input and output in float32."""

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel


def to_fp16(data: bytes) -> bytes:
    """Convert weights and intermediate values to float16; `x`, `y` and the metadata are unchanged.

    What comes before a quantiser stays in float32, because its ramps between two levels magnify rounding errors. The
    converter is that of onnxruntime, which knows the operators without half precision.
    """
    single = onnx.load_model_from_string(data)
    model: ModelProto = convert_float_to_float16(single, keep_io_types=True, node_block_list=_before_levels(single))
    _remove_round_trips(model)
    # ONNX requires the nodes in topological order; the converter appends its casts at the end.
    OnnxModel(model).topological_sort(is_deterministic=True)
    del model.graph.value_info[:]  # the converter leaves types there that are no longer true
    onnx.checker.check_model(model, full_check=True)
    half: bytes = model.SerializeToString(deterministic=True)
    return half


def _before_levels(model: ModelProto) -> list[str]:
    """The names of the nodes that compute the levels of a quantiser: from the input to the convolution behind it."""
    nodes = model.graph.node
    levels = {name for node in nodes if node.op_type == "Round" for name in node.output}
    for node in nodes:  # in topological order
        if node.op_type != "Conv" and levels.intersection(node.input):
            levels.update(node.output)
    blocked, needed = [], levels
    for node in reversed(nodes):
        if needed.intersection(node.output):
            blocked.append(node.name)
            needed.update(node.input)
    return blocked


def _remove_round_trips(model: ModelProto) -> None:
    """Remove casts float32 → float16 → float32, which the converter puts between `x` and a node in float32."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    replaced = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if node.input[0] in casts and node.attribute[0].i == onnx.TensorProto.FLOAT
    }
    for node in model.graph.node:
        node.input[:] = [replaced.get(name, name) for name in node.input]
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [node for node in model.graph.node if node.op_type != "Cast" or used.intersection(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
