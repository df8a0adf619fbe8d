"""Turn a run into `model.onnx` with its card, and publish it only once it computes what was trained."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import onnx
import torch
from pydantic import ValidationError
from torch import nn
from torch.export import Dim

from model_export.errors import UserError
from model_export.export.artifact import FILES, GOLDEN, OnnxFunction, Precision, publish, stamp
from model_export.export.fp16 import to_fp16
from model_export.export.verify import Verification, compare
from model_export.training.network import parameter_count
from model_export.training.trained import TrainedModel, load_run
from service.artifact.card import INPUT, OUTPUT, ModelCard
from service.domain.latents import NoiseSource

OPSET: Final = 20
_LARGEST_BATCH: Final = 1024


def export(
    run: Path,
    models: Path,
    *,
    version: int | None = None,
    unfinished: bool = False,
    force: bool = False,
    fp16: bool = False,
    facts: Mapping[str, object] | None = None,
    threads: int = 0,
) -> tuple[Path, dict[str, Verification]]:
    """Export the averaged weights of a run to `<models>/<name>/<version>`.

    Args:
        run: folder of the run.
        models: model directory.
        version: number ≥ 1; the next free one when not given.
        unfinished: export a run that has not done all its steps.
        force: replace a version that is there.
        fp16: write `model.fp16.onnx` too.
        facts: fields of the card in place of the preset's, such as its description or polarity.
        threads: CPU threads of the check; 0 leaves the choice to onnxruntime.

    Returns:
        The version folder, and how each of its models, by file name, compares with the trained network.

    Raises:
        UserError: no such run, unfinished, the version is taken, or onnxruntime computes something else; nothing is
            written then.
    """
    model = load_run(run)
    if not (model.finished or unfinished):
        raise UserError(
            f"{run} has done {model.checkpoint.step} of {model.preset.steps} steps; finish it, or say --unfinished"
        )
    number = _next_version(models / model.preset.name) if version is None else version
    folder = models / model.preset.name / str(number)
    if folder.exists() and not force:
        raise UserError(f"{folder} exists; choose another --version, or say --force")
    card = card_of(model, str(number), facts or {})
    noise = NoiseSource(model.preset.shape, model.noise.for_card())
    files: dict[Precision, bytes] = {"fp32": stamp(to_onnx(model.network, model.preset.shape), card, noise)}
    if fp16:
        files["fp16"] = to_fp16(files["fp32"])
    compared: dict[str, Verification] = {}
    for precision, data in files.items():
        function = OnnxFunction(data, threads=threads)
        golden, compared[FILES[precision]] = compare(model, card, noise, function, precision)
    content = {FILES[precision]: data for precision, data in files.items()}
    publish(folder, {**content, GOLDEN: golden.to_bytes(files["fp32"])})
    return folder, compared


def to_onnx(network: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """The network as ONNX: input `x`, output `y`, both float32 (batch, C, H, W) with any batch size, weights inside.

    Of the exporter's annotations nothing stays: they quote source files by their path on this machine.
    """
    example = torch.zeros((2, *shape))
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: Dim("batch", min=1, max=_LARGEST_BATCH)},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    model = program.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def card_of(model: TrainedModel, version: str, facts: Mapping[str, object]) -> ModelCard:
    """What the file is to say of itself, ``facts`` before all; quality is added by `evaluate`.

    Raises:
        UserError: a name or value that a card can't hold.
    """
    preset, checkpoint = model.preset, model.checkpoint
    try:
        return ModelCard.model_validate(
            {
                "name": preset.name,
                "version": version,
                "description": preset.description,
                "objective": preset.objective,
                "shape": preset.shape,
                "background": (preset.background,) * preset.network.channels,
                "polarity": preset.polarity,
                "noise": {"kind": preset.noise, "norm": model.noise.mean_norm()},
                "steps": {"generate": preset.generate_steps, "project": preset.project_steps},
                "opset": OPSET,
                "data": checkpoint.data,
                "training": {
                    **{key: checkpoint.provenance.get(key) for key in ("command", "commit", "sources")},
                    "continued": checkpoint.provenance.get("continued", ()),
                    "steps": checkpoint.step,
                    "parameters": parameter_count(model.network),
                    "config": checkpoint.preset,
                },
                "licence": preset.licence,
                **facts,
            }
        )
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}") from exc


def _next_version(folder: Path) -> int:
    """One more than the highest that is there."""
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    return 1 + max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress off standard output, and pass over torch's use of what torch deprecates."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        yield
