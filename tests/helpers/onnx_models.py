"""Tiny real models for tests: ONNX files with a valid card, and their golden rows, made without
torch.

The default network is y = tanh(0.5 · conv3x3(x)) with fixed weights; its golden rows come from a
numpy implementation here, so a test that passes has compared two independent ones.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.artifact.card import Card, Data, ModelCard, Noise, Steps, Training, to_metadata
from service.domain.latents import FloatRows

ImageShape = tuple[int, int, int]
Polarity = Literal["light-on-dark", "dark-on-light", "none"]
OPSET = 20
UNKNOWN = {"schema_version": 2, "objective": None, "noise": None, "data": None, "training": None}


def make_card(
    name: str = "toy",
    version: str = "1",
    shape: ImageShape = (1, 8, 8),
    polarity: Polarity = "light-on-dark",
    **changes: Any,
) -> ModelCard:
    """A valid card of a model that learned from nothing; ``changes`` replace its fields."""
    fields: dict[str, Any] = {
        "name": name,
        "version": version,
        "description": "A tiny fixed network for tests.",
        "objective": "ign",
        "shape": shape,
        "background": (-1.0,) * shape[0],
        "polarity": polarity,
        "noise": Noise(kind="gaussian", norm=float(np.sqrt(np.prod(shape)))),
        "steps": Steps(generate=2, project=1),
        "opset": OPSET,
        "data": Data(name="none", sha256="0" * 64, licence="CC0-1.0", pictures=0),
        "training": Training(command="none", sources="0" * 64, steps=0, parameters=9, config={}),
        "distance_quantiles": tuple(i / 100 for i in range(101)),
        "licence": "CC0-1.0",
    }
    return ModelCard(**(fields | changes))


def weights(channels: int, scale: float) -> NDArray[np.float32]:
    """(C, C, 3, 3) convolution weights, the same on every machine; ``scale`` × a blur, channels
    weakly mixed.
    """
    blur = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float64) / 16
    mix = np.full((channels, channels), 0.1) + 0.9 * np.eye(channels)
    return (scale * mix[:, :, None, None] * blur).astype(np.float32)


def reference(x: FloatRows, scale: float = 1.0) -> FloatRows:
    """What the default network gives: tanh(0.5 · conv3x3(x)), (N, C, H, W), in float64 and numpy
    alone.
    """
    kernel = weights(x.shape[1], scale).astype(np.float64)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    y = np.zeros(x.shape)
    for i in range(3):
        for j in range(3):
            y += np.einsum(
                "oc,nchw->nohw", kernel[:, :, i, j], padded[:, :, i : i + height, j : j + width]
            )
    return np.tanh(0.5 * y).astype(np.float32)


def network(
    shape: ImageShape = (1, 8, 8), scale: float = 1.0, *, is_any_size: bool = False
) -> onnx.GraphProto:
    """The default network as a graph."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["convolved", "half"], ["halved"]),
        helper.make_node("Tanh", ["halved"], ["y"]),
    ]
    constants = {"kernel": weights(shape[0], scale), "half": np.float32(0.5)}
    sides = ("batch", shape[0], "height", "width") if is_any_size else ("batch", *shape)
    return graph(nodes, constants, sides, sides)


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    input_shape: Sequence[str | int],
    output_shape: Sequence[str | int],
    dtype: int = TensorProto.FLOAT,
) -> onnx.GraphProto:
    """A graph from x to y."""
    return helper.make_graph(
        list(nodes),
        "f",
        [helper.make_tensor_value_info("x", dtype, list(input_shape))],
        [helper.make_tensor_value_info("y", dtype, list(output_shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def serialise(body: onnx.GraphProto, card: Card | None) -> bytes:
    """An ONNX file's bytes; without a card when that is None."""
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    if card is not None:
        helper.set_model_props(model, to_metadata(card))
    return model.SerializeToString()


def model_bytes(card: Card | None = None, *, scale: float = 1.0) -> bytes:
    """The default network with a card."""
    card = card or make_card()
    return serialise(network(card.shape, scale, is_any_size=len(card.row_shapes) > 1), card)


def hungry(numbers: int, **card: Any) -> bytes:
    """A network that needs ``numbers`` float32 of scratch space for every batch."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "length"], ["scratch"]),
        helper.make_node("ReduceMax", ["scratch"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    shape = ("batch", 1, 8, 8)
    return serialise(graph(nodes, {"length": np.array([numbers])}, shape, shape), make_card(**card))


def every_other_row() -> bytes:
    """A network that gives half as many rows as it is given."""
    nodes = [helper.make_node("Slice", ["x", "start", "stop", "axis", "step"], ["y"])]
    constants = {"start": [0], "stop": [2**30], "axis": [0], "step": [2]}
    shapes = ("batch", 1, 8, 8), ("half", 1, 8, 8)
    return serialise(
        graph(nodes, {k: np.array(v) for k, v in constants.items()}, *shapes), make_card()
    )


def sample_rows(n: int, shape: ImageShape = (1, 8, 8), seed: int = 0) -> FloatRows:
    """(n, C, H, W) rows spread over the model's range."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


def npy(array: NDArray[Any]) -> bytes:
    """The array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_golden(folder: Path, x: FloatRows, y: FloatRows, digest: str | None = None) -> Path:
    """Write `golden.npz`; the digest is that of the folder's `model.onnx` unless given."""
    if digest is None:
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    np.savez(folder / "golden.npz", x=x, y=y, digest=np.array(digest))
    return folder / "golden.npz"


def write_model(
    directory: Path,
    name: str = "toy",
    version: str = "1",
    shape: ImageShape = (1, 8, 8),
    polarity: Polarity = "light-on-dark",
    scale: float = 1.0,
    imported: bool = False,
    **changes: Any,
) -> Path:
    """Write `<directory>/<name>/<version>/{model.onnx, golden.npz}`; the version's folder.

    ``scale`` is a factor of the convolution, so that models can differ; ``changes`` replace fields
    of the card. That of an ``imported`` model tells nothing of training and noise. A card with
    ``tiles`` is of schema 2.
    """
    folder = directory / name / version
    folder.mkdir(parents=True)
    card: Card = make_card(name, version, shape, polarity, **changes)
    if imported or card.tiles:
        card = Card.model_validate(
            card.model_dump() | (UNKNOWN if imported else {"schema_version": 2})
        )
    (folder / "model.onnx").write_bytes(model_bytes(card, scale=scale))
    x = sample_rows(4, shape)
    write_golden(folder, x, reference(x, scale))
    return folder
