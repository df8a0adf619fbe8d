"""The form in which a foreign network takes and gives images, and what brings rows of the service
into that form.

    x ─ BGR ─ scale ─ NHWC ─ network ─ NHWC ─ x − noise ─ scale ─ BGR ─ clip ─ y

`Form.fold` puts these steps into the graph. `Form.apply` computes the same in numpy, for the golden
rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph

from model_export.export.artifact import serialised
from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import LARGE, FloatRows

Array = NDArray[Any]
Layout = Literal["nchw", "nhwc"]
Shape = tuple[Any, int, int]  # (C, H, W); C is 1 or 3
# of all names of the network, so that they differ from those of the service
_PREFIX: Final = "network/"
_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)
_SWAPPED: Final = np.array([2, 1, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a network takes and gives images. ``mean`` and ``std`` are by channel, in the network's
    order.
    """

    shape: Shape
    interval: tuple[float, float]  # values of black and white, before `mean` and `std`
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    plain_output: bool = False  # `mean` and `std` are of the input alone
    layout: Layout = "nchw"
    bgr: bool = False
    residual: bool = False  # the network gives what has to be subtracted from its input
    # a batch of 1 is opened, or runs in a loop over the rows
    batch: Literal["any", "opened", "loop"] = "any"
    clip: bool = False
    open_sides: bool = False  # the network takes other heights and widths, too

    @property
    def _affine(self) -> list[tuple[Array, Array]]:
        """(factor, offset), (C, 1, 1) float64, from 0…1 to what the network takes, and to what it
        gives.
        """
        low, high = self.interval
        mean, std = (
            np.array(values, dtype=np.float64).reshape(-1, 1, 1) for values in (self.mean, self.std)
        )
        taken = (high - low) / std, (low - mean) / std
        return [taken, (high - low + 0 * mean, low + 0 * mean) if self.plain_output else taken]

    @property
    def is_scaled(self) -> bool:
        """Whether the graph scales values: if not all have one range, or it is far from that of
        latents.
        """
        (factor, offset), _ = self._affine
        ends = np.array([offset, factor + offset])  # black and white, by channel
        return bool(self.plain_output or np.ptp(ends, axis=1).any() or np.abs(ends).max() > LARGE)

    @property
    def range(self) -> tuple[float, float]:
        """The range of the card: that of the network's values, or 0…1 if they are scaled."""
        (factor, offset), _ = self._affine
        return (
            (0.0, 1.0)
            if self.is_scaled
            else (float(offset.flat[0]), float((factor + offset).flat[0]))
        )

    @property
    def folded(self) -> list[str]:
        """What is put into the graph, in words."""
        low, high = self.interval
        normalised = (
            f" with mean {self.mean} and deviation {self.std}"
            if self.mean + self.std != (0.0, 1.0)
            else ""
        )
        parts = {
            "NHWC": self.layout == "nhwc",
            "BGR": self.bgr,
            f"values {low:g}…{high:g}{normalised}": self.is_scaled,
            "y = x − network(x)": self.residual,
            "a batch of any size": self.batch == "opened",
            "a loop over the rows, as its batch is fixed to 1": self.batch == "loop",
            "output clipped to {:g}…{:g}".format(*self.range): self.clip,
        }
        return [text for text, applies in parts.items() if applies]

    def apply(self, network: Callable[[Array], Array], rows: FloatRows) -> FloatRows:
        """Compute f of rows in numpy: ``network`` maps values in its own form, and all else is
        computed in float64.
        """
        before, after = self._affine if self.is_scaled else [(1.0, 0.0)] * 2
        values = (rows[:, ::-1] if self.bgr else rows).astype(np.float64) * before[0] + before[1]
        given = values.transpose(_TO_NHWC) if self.layout == "nhwc" else values
        result = network(np.ascontiguousarray(given, dtype=np.float32)).astype(np.float64)
        result = result.transpose(_TO_NCHW) if self.layout == "nhwc" else result
        result = ((values - result if self.residual else result) - after[1]) / after[0]
        return np.ascontiguousarray(result[:, ::-1] if self.bgr else result, dtype=np.float32)

    def fold(self, network: ModelProto) -> bytes:
        """The network as a graph from x to y, float32 (batch, C, H, W), without its metadata."""
        model = ModelProto()
        model.CopyFrom(network)
        graph = model.graph
        del model.metadata_props[:], graph.value_info[:]
        model.ir_version = max(model.ir_version, 4)  # from which on weights need not be inputs
        weights = {tensor.name: _PREFIX + tensor.name for tensor in graph.initializer}
        # `add_prefix_graph` comes to the weights after the subgraphs that use them, so it is told
        # their names.
        add_prefix_graph(graph, _PREFIX, inplace=True, name_map=dict(weights))
        (given,) = {value.name for value in graph.input} - set(weights.values())
        result = graph.output[0].name
        nodes = list(graph.node)
        if self.batch == "loop":
            nodes = [self._loop(graph, given, result)]
            given = "rows_in"
            result = "rows_out"
            del graph.initializer[:]
        before = _Chain(INPUT, graph)
        after = _Chain(result, graph)
        self._add_after(after, self._add_before(before))
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend([*before.ending(given), *nodes, *after.ending(OUTPUT)])
        has_open_sides = self.open_sides and self.batch != "loop"
        dims: list[str | int] = [
            "batch",
            self.shape[0],
            *(("height", "width") if has_open_sides else self.shape[1:]),
        ]
        graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, dims))
        graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, dims))
        return serialised(model)

    def _add_before(self, chain: "_Chain") -> str:
        """Add the steps before the network; returns the name of the values that a residual is
        subtracted from.
        """
        (factor, offset), _ = self._affine
        if self.bgr:
            chain.add("Gather", _SWAPPED, axis=1)
        if self.is_scaled:
            chain.add("Mul", factor)
            chain.add("Add", offset)
        values = chain.name
        if self.layout == "nhwc":
            chain.add("Transpose", perm=_TO_NHWC)
        return values

    def _add_after(self, chain: "_Chain", values: str) -> None:
        _, (factor, offset) = self._affine
        if self.layout == "nhwc":
            chain.add("Transpose", perm=_TO_NCHW)
        if self.residual:
            chain.add("Neg")
            chain.add("Add", values)
        if self.is_scaled:
            chain.add("Sub", offset)
            chain.add("Div", factor)
        if self.bgr:
            chain.add("Gather", _SWAPPED, axis=1)
        if self.clip:
            for operator, bound in zip(("Max", "Min"), self.range, strict=True):
                chain.add(operator, np.array(bound))

    def _loop(self, graph: GraphProto, given: str, result: str) -> NodeProto:
        """A loop over the rows of a batch, whose body is the network with a batch of 1."""
        channels, height, width = self.shape
        row = [height, width, channels] if self.layout == "nhwc" else [channels, height, width]
        shapes = [
            numpy_helper.from_array(np.array(each), f"{len(each)}d") for each in ([1, *row], row)
        ]
        nodes = [
            helper.make_node("Reshape", ["row_in", "4d"], [given]),
            *graph.node,
            helper.make_node("Reshape", [result, "3d"], ["row_out"]),
        ]
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, row)
            for name in ("row_in", "row_out")
        ]
        body = helper.make_graph(nodes, "row", ends[:1], ends[1:], [*graph.initializer, *shapes])
        return helper.make_node(
            "Scan", ["rows_in"], ["rows_out"], name="rows", body=body, num_scan_inputs=1
        )


class _Chain:
    """Nodes one after the other, beginning with the value ``name``; constants go into the graph."""

    def __init__(self, name: str, graph: GraphProto) -> None:
        self.name = name
        self._first = name
        self._graph = graph
        self._nodes: list[NodeProto] = []

    def add(self, operator: str, operand: Array | str = "", **attributes: Any) -> None:
        """Add an operator; an array of float64 becomes a constant of float32."""
        name = f"after {self._first}/{len(self._nodes)}"
        if not isinstance(operand, str):
            array = operand.astype(np.float32) if operand.dtype == np.float64 else operand
            operand = f"{name}/constant"
            self._graph.initializer.append(numpy_helper.from_array(array, operand))
        inputs = [self.name, operand] if operand else [self.name]
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.name = name

    def ending(self, name: str) -> list[NodeProto]:
        """The nodes, the last of which gives the value ``name``."""
        self.add("Identity")
        self._nodes[-1].output[0] = name
        return self._nodes
