"""Networks as other programs write them, as ONNX files; made without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[str | int]


class Network:
    """A graph under construction, from its input to whatever the last operator gives."""

    def __init__(self, dims: Dims, *, name: str = "data", seed: int = 0) -> None:
        self.dims = list(dims)
        self.input = name
        self.last = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def add(self, operator: str, *operands: Any, **attributes: Any) -> "Network":
        """Add an operator; its further operands are names or arrays."""
        inputs = [self.last]
        for operand in operands:
            inputs.append(operand if isinstance(operand, str) else self.weight(operand))
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [self.last], **attributes))
        return self

    def weight(self, values: Any) -> str:
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def conv(self, channels: int, out: int, *, gain: float = 1.0) -> "Network":
        values = self.random.normal(0, gain / np.sqrt(9 * channels), (out, channels, 3, 3))
        return self.add("Conv", values, self.random.normal(0, 0.01, out), pads=[1, 1, 1, 1])

    def model(
        self, dims: Dims | None = None, *, opset: int = 17, kind: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        ends = [
            helper.make_tensor_value_info(name, kind, list(each))
            for name, each in ((self.input, self.dims), (self.last, dims or self.dims))
        ]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )

    def write(self, path: Path, dims: Dims | None = None, **options: Any) -> Path:
        path.write_bytes(self.model(dims, **options).SerializeToString())
        return path


def plain(file: str | Path, rows: Any) -> Any:
    """What plain onnxruntime makes of a batch."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: rows})[0]


def dncnn() -> Network:
    """Grey, 20×28: gives the noise that has to be subtracted."""
    network = Network(["n", 1, 20, 28])
    return network.conv(1, 8).add("Relu").conv(8, 8).add("Relu").conv(8, 1, gain=0.1)


def autoencoder() -> Network:
    """Colour, 32×32, with a bottleneck of 16 numbers, and a sigmoid at its end."""
    network = Network(["batch", 3, 32, 32], name="x")
    network.conv(3, 4).add("Tanh").add("Reshape", np.array([0, -1]))
    for size, out in ((4 * 32 * 32, 16), (16, 3 * 32 * 32)):
        network.add("MatMul", network.random.normal(0, 3 / np.sqrt(size), (size, out)))
    return network.add("Reshape", np.array([0, 3, 32, 32])).add("Sigmoid")


def keras() -> Network:
    """NHWC, BGR, 0…255, 16×24, clipped to 0…255 by itself."""
    network = Network(["n", 16, 24, 3], name="input_1")
    network.add("Mul", 1 / 255).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 6).add("Relu").conv(
        6, 3, gain=2.0
    )
    network.add("Transpose", perm=[0, 2, 3, 1]).add("Mul", 255.0)
    return network.add("Add", np.array([10.0, 60.0, 110.0])).add(
        "Clip", np.float64(0), np.float64(255)
    )


def fixed_batch(*, opens: bool) -> Network:
    """A batch of 1; where it does not ``open``, the graph reshapes to it."""
    network = Network([1, 1, 8, 8]).conv(1, 4)
    if not opens:
        network.add("Reshape", np.array([1, -1])).add("Softsign").add(
            "Reshape", np.array([1, 4, 8, 8])
        )
    return network.conv(4, 1).add("Tanh")


def batch_normalised() -> Network:
    """What a batch norm in training mode does: each row depends on the others."""
    network = Network(["n", 1, 8, 8]).conv(1, 1).add("Identity")
    rows = network.last
    network.add("ReduceMean", axes=[0, 2, 3], keepdims=1).add("Sub", rows)
    return network.add("Tanh")


def endless() -> Network:
    """A loop that does not end: its condition stays true."""
    info = helper.make_tensor_value_info
    before = [
        info("i", TensorProto.INT64, []),
        info("go", TensorProto.BOOL, []),
        info("a", TensorProto.FLOAT, None),
    ]
    after = [info("on", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, None)]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["a"], ["b"])]
    body = helper.make_graph(nodes, "body", before, after)
    network = Network(["n", 1, 8, 8])
    count = network.weight(np.array(2**62))
    condition = network.weight(np.array(True))
    network.nodes.append(
        helper.make_node("Loop", [count, condition, "data"], ["looped"], body=body)
    )
    network.last = "looped"
    return network.add("Tanh")


def two_inputs() -> onnx.ModelProto:
    """An image, and how noisy it is."""
    model = Network(["n", 1, 8, 8]).add("Mul", "sigma").model()
    model.graph.input.append(helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1]))
    return model
