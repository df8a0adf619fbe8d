"""Read the weights of an exported version back, so that a training can start from them."""

from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from model_export.errors import UserError
from model_export.export.artifact import Artifact
from model_export.export.export import to_onnx
from model_export.training.checkpoint import FILE, StartWeights, load
from model_export.training.presets import Preset
from model_export.training.restorer import build_network
from service.artifact.files import MODEL_FILE

_BITS: Final = int(np.float32(1024).view(np.int32))  # of the first number, which is larger than constants of a graph


def read_weights(folder: Path) -> StartWeights:
    """The weights of a version folder, in the names of its network.

    ONNX keeps the names of some parameters only, and the exporter moves values. A network of the same architecture is
    exported as well, in which every value is a number of its own: where it lands in that file, it is in this one. The
    golden rows of the version confirm the result.
    """
    artifact = Artifact.read(folder)
    golden = artifact.golden()
    try:
        preset = Preset.from_dict(artifact.card.training.config)
    except (KeyError, TypeError, ValueError) as exc:
        raise UserError(f"{folder}: this program does not know its network") from exc
    network = build_network(preset.network).eval()
    bits = _BITS + torch.arange(parameters_to_vector(network.parameters()).numel(), dtype=torch.int32)
    vector_to_parameters(bits.view(torch.float32), network.parameters())
    for buffer in network.buffers():
        if buffer.dim() == 0:  # so that blocks are active
            buffer.fill_(1.0)
    values, found = torch.full(bits.shape, torch.nan), _tensors(to_onnx(network, preset.exported_shape))
    stored = _tensors(artifact.data)
    if list(map(len, found)) == list(map(len, stored)):
        numbers = torch.from_numpy(np.concatenate(found)).view(torch.int32).long() - _BITS
        places = (numbers >= 0) & (numbers < len(values))  # others are constants of the graph
        values[numbers[places]] = torch.from_numpy(np.concatenate(stored))[places]
    if values.isnan().any():
        raise UserError(f"{folder}: PyTorch or this program has changed since its export; its weights cannot be read")
    vector_to_parameters(values, network.parameters())
    with torch.inference_mode():
        difference = np.abs(network(torch.tensor(golden.x)).numpy() - golden.y).max()
    if not difference <= 1e-4:
        raise UserError(f"{folder}: its weights do not reproduce its golden rows (difference {difference:.1e})")
    return StartWeights(preset=preset, state=network.state_dict(), digest=_digest(artifact.data))


def start_weights(folder: str | None, out: Path) -> StartWeights | None:
    """The weights with which a run starts; None if no version is named, or ``out`` holds a run, which has its own."""
    if folder is None:
        return None
    version = Path(folder)
    if not (out / FILE).is_file():
        return read_weights(version)
    started = load(out / FILE).provenance.get("start")
    if started is None or ((version / MODEL_FILE).is_file() and started != _digest(Artifact.read(version).data)):
        raise UserError(f"{out} holds a run that did not start with {folder}; leave out --start, or change --out")
    return None


def _digest(data: bytes) -> str:
    """SHA-256 of the weights in a model file. That of the file would not do: `evaluate` changes the card in it."""
    return sha256(b"".join(values.tobytes() for values in _tensors(data))).hexdigest()


def _tensors(data: bytes) -> list[NDArray[Any]]:
    """The float32 tensors of a model file, flat, in order."""
    graph = onnx.load_model_from_string(data).graph
    arrays = (numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    return [array.ravel() for array in arrays]
