"""Checkpoints: the whole state of a run in one file, replaced atomically.

A checkpoint holds no random state. Every random number comes from a generator seeded with (seed, stream, step), so seed
and step are enough to continue, on any device.
"""

import io
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_export.data.noise import NoiseSampler
from model_export.errors import UserError
from model_export.files import atomic_write
from model_export.training.network import Autoencoder, averaged_model
from model_export.training.presets import Preset

FORMAT = 1
FILE = "checkpoint.pt"
_NUMBERED = re.compile(r"checkpoint-(\d+)\.pt")


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps. The field names are the keys of the file."""

    preset: dict[str, Any]  # `Preset.to_dict()`
    seed: int
    stage: int  # index of the present stage
    stage_step: int  # steps done in the stage
    step: int  # steps done in the run
    network: dict[str, Tensor]  # state dicts
    average: dict[str, Tensor]
    optimiser: dict[str, Any]
    teacher: dict[str, Tensor] | None  # state dict of the frozen teacher; None in stages without one
    statistics: Tensor | None  # (4, C, H, W) noise statistics, or None
    data: dict[str, Any]  # name, sha256, licence and number of training pictures
    provenance: dict[str, Any]  # command, commit, digest of the sources, precision, threads, torch version
    critic: dict[str, Any] | None = None  # state of the discriminator and its optimiser; None in stages without one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """The network that a run has trained."""

    checkpoint: Checkpoint  # the state of the run
    preset: Preset  # that was trained
    network: nn.Module  # f with the averaged weights, on the CPU, in evaluation mode
    noise: NoiseSampler  # distribution of its latents

    @property
    def finished(self) -> bool:
        """Whether all steps of the preset are done."""
        return self.checkpoint.step >= self.preset.steps


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``path`` atomically.

    Raises:
        OSError: the file cannot be written.
    """
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    write_tensors({"format": FORMAT, **content}, path)


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write what `torch.load` reads, atomically. torch writes to memory: it turns the error of a file into its own.

    Raises:
        OSError: the file cannot be written.
    """
    memory = io.BytesIO()
    torch.save(content, memory)
    with atomic_write(path) as file:
        file.write(memory.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without unpickling code: tensors and plain values only."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of this program")
        content.pop("replay", None)  # of older versions
        return Checkpoint(**content)
    except UserError:
        raise
    # On a damaged file torch.load passes on the errors of its zip and pickle readers, of any type.
    except Exception as exc:
        raise UserError(f"{path}: damaged checkpoint") from exc


def load_run(folder: Path) -> TrainedModel:
    """Load the trained network of a run's folder."""
    checkpoint = load(folder / FILE)
    try:
        preset = Preset.from_dict(checkpoint.preset)
        average = averaged_model(Autoencoder(preset.network), preset.ema)
        average.load_state_dict(checkpoint.average)
    # Missing and unknown fields, values out of range, weights of other names or shapes.
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise UserError(f"{folder / FILE}: this program does not know its network") from exc
    return TrainedModel(
        checkpoint=checkpoint,
        preset=preset,
        network=average.module.eval(),
        noise=NoiseSampler(preset.shape, checkpoint.statistics),
    )


def rotate(folder: Path, step: int, keep: int) -> None:
    """Keep the present checkpoint as `checkpoint-STEP.pt` as well, and delete all but the last ``keep`` of those files.

    The copy is a hard link if the file system supports it. With ``keep`` = 1 nothing is copied and nothing is deleted,
    so files that an earlier command kept stay.
    """
    if keep == 1:
        return
    source, copy = folder / FILE, folder / f"checkpoint-{step:07d}.pt"
    copy.unlink(missing_ok=True)
    try:
        copy.hardlink_to(source)
    except OSError:
        with atomic_write(copy) as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
    numbered = ((int(match[1]), path) for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name)))
    for _, path in sorted(numbered)[:-keep]:
        path.unlink()
