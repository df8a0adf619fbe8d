"""Export a run as `model.onnx` with its card. The file is published only if it reproduces the
trained network.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx
import torch
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from pydantic import ValidationError
from torch import nn
from torch.export import Dim

from model_export.errors import UserError, card_error
from model_export.export.artifact import (
    OnnxFunction,
    TrainedCard,
    open_sides,
    publish,
    remove_annotations,
    serialised,
    smaller_tiles,
    stamp,
    version_folder,
)
from model_export.export.verify import Verification, compare
from model_export.training.checkpoint import TrainedModel, load_run
from model_export.training.presets import Preset
from service.artifact.card import INPUT, OUTPUT
from service.artifact.files import GOLDEN_FILE, MODEL_FILES, Precision
from service.artifact.golden import digest_of

OPSET: Final = 20

# Names and prompts for the page, by model. They are no part of the presets, which runs store and
# compare.
_TITLES: Final[Mapping[str, Mapping[str, str]]] = {
    "mnist": {"title": "Digits", "prompt": "Draw a digit, 0–9"},
    "fashion_mnist": {"title": "Clothes", "prompt": "Draw a shirt, a shoe or a bag"},
    "avatars64": {"title": "Avatars", "prompt": "Draw a face, or paste a picture"},
    "scans": {"title": "Scans", "prompt": "Drop a photograph of a page"},
}


def export(
    run: Path,
    models: Path,
    *,
    version: int | None = None,
    unfinished: bool = False,
    force: bool = False,
    fp16: bool = False,
    card_fields: Mapping[str, object] | None = None,
    threads: int = 0,
) -> tuple[Path, dict[str, Verification]]:
    """Export the averaged weights of a run to `<models>/<name>/<version>`; without a version to the
    next free one.

    Nothing is written if onnxruntime computes other values than torch.
    """
    model = load_run(run)
    if model.checkpoint.step < model.preset.steps and not unfinished:
        raise UserError(
            f"{run} has done {model.checkpoint.step} of {model.preset.steps} steps; finish "
            f"it, or say --unfinished"
        )
    folder = version_folder(models / model.preset.name, version)
    if folder.exists() and not force:
        raise UserError(f"{folder} exists; choose another --version, or say --force")
    card = card_of(model, folder.name, card_fields or {})
    if fp16 and card.exact:
        raise UserError(
            "--fp16: an exact model computes in float32, so half precision brings it nothing"
        )
    data = to_onnx(model.network, model.preset.exported_shape)
    files: dict[Precision, bytes] = {
        "fp32": stamp(open_sides(data) if len(card.row_shapes) > 1 else data, card)
    }
    if fp16:
        files["fp16"] = to_fp16(files["fp32"])
    digest = digest_of(files["fp32"])
    verifications: dict[str, Verification] = {}
    for precision, data in files.items():
        function = OnnxFunction(data, threads=threads)
        golden, verifications[MODEL_FILES[precision]] = compare(
            model, card, function, digest, precision
        )
    content = {MODEL_FILES[precision]: data for precision, data in files.items()}
    publish(folder, {**content, GOLDEN_FILE: golden.to_bytes()})
    return folder, verifications


def to_onnx(network: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """The network as ONNX with its weights: input `x`, output `y`, float32 (batch, C, H, W) with
    any batch size.
    """
    example = torch.zeros((2, *shape))
    # The exporter prints its progress, and torch warns of its own use of a deprecated class.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: Dim("batch", min=1, max=1024)},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    model = program.model_proto
    remove_annotations(model)
    onnx.checker.check_model(model, full_check=True)
    return serialised(model)


def to_fp16(data: bytes) -> bytes:
    """Convert weights and intermediate values to float16; `x`, `y` and the metadata are unchanged.

    The converter is that of onnxruntime, which knows the operators without half precision.
    """
    model: ModelProto = convert_float_to_float16(
        onnx.load_model_from_string(data), keep_io_types=True
    )
    # ONNX requires the nodes in topological order; the converter appends its casts at the end.
    OnnxModel(model).topological_sort(is_deterministic=True)
    del model.graph.value_info[:]  # the converter leaves types there that are no longer true
    onnx.checker.check_model(model, full_check=True)
    return serialised(model)


def _kind(preset: Preset) -> dict[str, object]:
    """The fields of a generator, or of a network that restores: that one has rows as large as many
    pictures.
    """
    if preset.objective == "restore":
        multiple = 2 ** len(preset.network.widths)
        tiles = {"overlap": preset.overlap, "multiple": multiple, "margin": preset.margin}
        tiles |= {"smaller": smaller_tiles(preset.tile, multiple)}
        return {"schema_version": 2, "buckets": (1,), "tiles": tiles if preset.tile else None}
    noise = {"kind": "gaussian", "norm": math.sqrt(math.prod(preset.shape))}
    return {"objective": preset.objective, "noise": noise}


def card_of(model: TrainedModel, version: str, fields: Mapping[str, object]) -> TrainedCard:
    """The card of a trained model. ``fields`` replace those of the preset; `evaluate` adds the
    quality.
    """
    preset = model.preset
    checkpoint = model.checkpoint
    fields = dict(fields)
    steps = {"generate": fields.pop("generate_steps", preset.generate_steps), "project": 1}
    try:
        return TrainedCard.model_validate(
            {
                "name": preset.name,
                "version": version,
                "description": preset.description,
                **_TITLES.get(preset.name, {}),
                **_kind(preset),
                "shape": preset.exported_shape,
                "background": preset.background
                * (preset.network.channels // len(preset.background)),
                "polarity": preset.polarity,
                "exact": preset.network.blocks > 0
                and bool(model.network.get_buffer("blocks.fitted")),
                "steps": steps,
                # The shares of colours are exponentials, which multiply rounding errors.
                "tolerance": {"fp32": 1e-3} if preset.network.palette else {},
                "opset": OPSET,
                "data": checkpoint.data,
                "training": {
                    **checkpoint.provenance,
                    "steps": checkpoint.step,
                    "parameters": sum(
                        p.numel() for p in model.network.parameters() if p.requires_grad
                    ),
                    "config": checkpoint.preset,
                },
                "licence": preset.licence,
                **fields,
            }
        )
    except ValidationError as exc:
        raise card_error(exc) from exc
