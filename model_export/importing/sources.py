"""Read a network: from an ONNX file, or from a class of torch and a checkpoint."""

import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)
from onnx.inliner import inline_local_functions
from onnxruntime.transformers.onnx_model import OnnxModel

from model_export.errors import UserError
from model_export.export.artifact import OnnxFunction, remove_annotations
from model_export.importing.form import Array

if TYPE_CHECKING:
    from torch import nn

_OLDEST_OPSET: Final = 9  # which has the loop over rows that `Form` writes
_MAX_OPERATORS: Final = 100_000  # large transformers have 10 000
_BOUNDED: Final[Mapping[str, tuple[float, float]]] = {
    "Sigmoid": (0, 1),
    "HardSigmoid": (0, 1),
    "Tanh": (-1, 1),
}
_PASS_ON: Final = ("Identity", "Transpose", "Reshape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network as it is found; ``run`` is a second implementation of the same graph."""

    model: ModelProto
    run: Callable[[Array], Array]
    second: str = "onnxruntime without optimisations"  # what `run` is
    notes: tuple[str, ...] = ()  # how a checkpoint became a graph

    @property
    def ends(self) -> tuple[ValueInfoProto, ValueInfoProto]:
        """Input and output; raises UserError if there are more."""
        graph = self.model.graph
        weights = {tensor.name for tensor in self.model.graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
        for kind, values in (("input", inputs), ("output", list(graph.output))):
            if len(values) != 1:
                names = ", ".join(value.name for value in values)
                raise UserError(
                    f"it has {len(values)} {kind}s ({names}), and f has one: see docs/import.md"
                )
        return inputs[0], graph.output[0]

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return int(self.model.opset_import[0].version)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Between which values the last operator gives all; None if it does not tell."""
        model = OnnxModel(self.model)
        makers = model.output_name_to_node(exclude_subgraphs=True)
        node = makers.get(self.ends[1].name)
        while node is not None and node.op_type in _PASS_ON:
            node = makers.get(node.input[0])
        if node is None or node.op_type != "Clip":
            return None if node is None else _BOUNDED.get(node.op_type)
        values = {attribute.name: attribute.f for attribute in node.attribute}  # before opset 11
        for end, name in zip(("min", "max"), node.input[1:], strict=False):
            if (constant := model.get_constant_value(name)) is not None:
                values[end] = float(constant)
        return (values["min"], values["max"]) if len(values) == 2 else None

    def __str__(self) -> str:
        graph = self.model.graph
        (first, last) = self.ends
        weights = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
        ends = f"input `{first.name}` {dims_text(first)}, output `{last.name}` {dims_text(last)}"
        return f"opset {self.opset}, {len(graph.node)} operators, {weights:,} weights, {ends}"


def read_onnx(path: Path) -> Source:
    """Read an ONNX file and all of its weights; raises UserError, or what onnx and onnxruntime
    raise.
    """
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as exc:  # of protobuf, which has no type hints
        raise UserError(
            "a checkpoint of torch needs --module FILE.py:NAME"
            if data[:2] in (b"PK", b"\x80\x02")
            else "not an ONNX file, or a damaged one"
        ) from exc
    if not model.graph.node:
        raise UserError("not an ONNX file, or an empty one")
    onnx.load_external_data_for_model(model, str(path.parent))
    if model.functions:
        _check_functions(model)
        model = inline_local_functions(model)
    remove_annotations(model)
    _check_nodes(model)
    onnx.checker.check_model(model)
    # with one thread, so that it gives the same result every time
    plain = OnnxFunction(model.SerializeToString(), threads=1, optimised=False)
    return Source(model=model, run=partial(plain, batch=1 if plain.input.shape[:1] == [1] else 3))


def read_checkpoint(options: Namespace) -> Source:
    """Export the class that `--module` names, with the weights of a checkpoint, from torch."""
    if options.shape is None:
        raise UserError(
            "--module: say --shape as well, such as --shape 1,28,28: channels, height, width"
        )
    file, _, name = options.module.rpartition(":")
    # where the file imports from
    sys.path[:0] = [str(Path(file).resolve().parent), str(Path.cwd())]
    make = runpy.run_path(file).get(name) if Path(file).is_file() else None
    if not callable(make):
        raise UserError(
            f"--module {options.module}: expected FILE.py:NAME, and no {file} defines {name!r}"
        )
    import torch

    from model_export.export.export import to_onnx

    network: nn.Module = make()
    weights = _load_weights(network, options.file)
    network.eval()

    def run(values: Array) -> Array:
        with torch.inference_mode():
            result: Array = network(torch.from_numpy(values)).numpy()
        return result

    model = onnx.load_model_from_string(to_onnx(network, options.shape))
    notes = (f"torch {torch.__version__} exported {Path(options.module).name}", *weights)
    return Source(model=model, run=run, second="torch", notes=notes)


def dims(value: ValueInfoProto) -> list[int | None]:
    """The sizes of a value; None for one that may be any."""
    return [
        dim.dim_value if dim.HasField("dim_value") else None
        for dim in value.type.tensor_type.shape.dim
    ]


def dims_text(value: ValueInfoProto) -> str:
    """Type and sizes, such as `float any×3×64×64`."""
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{kind} {'×'.join('any' if size is None else str(size) for size in dims(value))}"


def _check_nodes(model: ModelProto) -> None:
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            operator = f"{node.op_type} of the domain {node.domain}"
            raise UserError(
                f"it holds the operator {operator}; only those of the ONNX standard are run"
            )
        node.domain = ""
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not versions or versions[0] < _OLDEST_OPSET:
        raise UserError(f"its opset is older than {_OLDEST_OPSET}; export it again")
    del model.opset_import[:]  # other domains may be named without being used
    model.opset_import.append(onnx.helper.make_opsetid("", versions[0]))


def _check_functions(model: ModelProto) -> None:
    """Raise UserError if the functions of a file, written out, make very many operators: each may
    call others twice.
    """
    functions = {(each.domain, each.name): each for each in model.functions}

    @cache
    def count(domain: str, name: str) -> int:
        function = functions.get((domain, name))
        return 1 if function is None else count_all(function)

    def count_all(part: GraphProto | FunctionProto) -> int:
        return sum(count(node.domain, node.op_type) for node in _nodes(part))

    try:
        operators = count_all(model.graph)
    except RecursionError as exc:
        raise UserError("its functions call each other without end") from exc
    if operators > _MAX_OPERATORS:
        raise UserError(
            f"its functions make {operators:,} operators; at most {_MAX_OPERATORS:,} are run"
        )


def _nodes(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a graph or function, and of the graphs in them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _load_weights(network: "nn.Module", path: Path) -> tuple[str, ...]:
    """Load the part of a checkpoint that fits the network, of several the averaged one; returns its
    name, if any.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as exc:  # pickle, zipfile and torch raise a dozen types
        raise UserError(
            "more than weights; torch.save(model.state_dict(), …) writes weights alone"
        ) from exc
    tensors = dict(_tensors(content))
    own = list(network.state_dict())
    # Trainers put the network into another module, or several into one file, which puts a prefix
    # such as `module.` before its names.
    prefixes = [name.removesuffix(own[0]) for name in tensors if name.endswith(own[0])]
    fitting = [each for each in prefixes if all(each + name in tensors for name in own)]
    if not fitting:
        lacking = (name for name in own if all(each + name not in tensors for each in prefixes))
        raise UserError(f"it lacks weights of the class, such as {next(lacking, own[-1])}")
    prefix = next((each for each in fitting if "ema" in each), fitting[0])
    network.load_state_dict({name: tensors[prefix + name] for name in own})
    return (f"weights `{prefix.removesuffix('.')}`",) if prefix else ()


def _tensors(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a checkpoint and of what it holds, by names with dots between."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
