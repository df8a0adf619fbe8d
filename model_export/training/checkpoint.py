"""Checkpoints: all that a run is, in one file, replaced atomically.

Randomness needs no state of its own: every draw comes from a generator seeded with (seed, stream, step), so the seed
and the step are the random state, on any device.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_export.errors import UserError
from model_export.files import atomic

FORMAT = 1
FILE = "checkpoint.pt"
_NUMBERED = re.compile(r"checkpoint-(\d+)\.pt")


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A run between two steps.

    Args:
        preset: `Preset.to_dict()`.
        seed: of every draw.
        stage: index of the present stage.
        stage_step: steps done in it.
        step: steps done in all.
        network, average, optimiser: state dicts.
        teacher: state dict of the frozen teacher, or None in stages without one.
        statistics: (4, C, H, W) noise statistics, or None.
        data: name, sha256, licence and number of training pictures.
        provenance: command, commit, digest of the sources, precision, threads, torch version.
        critic: state of the critic and its optimiser, or None in stages without one.
    """

    preset: dict[str, Any]
    seed: int
    stage: int
    stage_step: int
    step: int
    network: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Any]
    teacher: dict[str, Tensor] | None
    statistics: Tensor | None
    data: dict[str, Any]
    provenance: dict[str, Any]
    critic: dict[str, Any] | None = None


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``path`` whole or not at all."""
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    with atomic(path) as file:
        torch.save({"format": FORMAT, **content}, file)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; tensors only, no code is unpickled.

    Raises:
        UserError: missing, damaged, or of another format.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of this program")
        return Checkpoint(**content)
    except UserError:
        raise
    # torch.load raises whatever its zip and pickle readers meet in a damaged file.
    except Exception as exc:
        raise UserError(f"{path}: damaged checkpoint") from exc


def rotate(folder: Path, step: int, keep: int) -> None:
    """Keep the present checkpoint as `checkpoint-STEP.pt`, too, and of those files the last ``keep``.

    The copy is a hard link where the file system has them. With ``keep`` = 1, `checkpoint.pt` is all there is, and
    files that an earlier command has kept are left alone.
    """
    if keep == 1:
        return
    source, copy = folder / FILE, folder / f"checkpoint-{step:07d}.pt"
    copy.unlink(missing_ok=True)
    try:
        copy.hardlink_to(source)
    except OSError:
        with atomic(copy) as file, source.open("rb") as whole:
            shutil.copyfileobj(whole, file)
    numbered = ((int(match[1]), path) for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name)))
    for _, path in sorted(numbered)[:-keep]:
        path.unlink()
