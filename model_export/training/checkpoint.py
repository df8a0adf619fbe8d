"""Checkpoints: the whole state of a run in one file, replaced atomically; where it comes from and
how it continues.

A checkpoint holds no random state. Every random number comes from a generator seeded with (seed,
stream, step), so seed and step are enough to continue, on any device.
"""

import dataclasses
import hashlib
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.files import atomic_write, write_file
from model_export.training.network import averaged_model
from model_export.training.presets import Preset, split_steps
from model_export.training.restorer import build_network
from model_export.training.stages import Stage

FORMAT = 1
FILE = "checkpoint.pt"
_NUMBERED = re.compile(r"checkpoint-(\d+)\.pt")
# Fields that may change at any time. Only the card uses them, but for `background`, on which
# drawings are drawn.
CARD_FIELDS: Final = (
    "name",
    "data",
    "licence",
    "description",
    "background",
    "polarity",
    "generate_steps",
    "tile",
    "overlap",
    "margin",
)


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
    # state dict of the frozen teacher; None in stages without one
    teacher: dict[str, Tensor] | None
    data: dict[str, Any]  # name, sha256, licence and number of training pictures
    # command, commit, digest of the sources, precision
    provenance: dict[str, Any]
    # state of the discriminator and its optimiser; None in stages without one
    critic: dict[str, Any] | None
    # state dict of the perceptual network; None in stages without one
    perceptual: dict[str, Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """The network that a run has trained."""

    checkpoint: Checkpoint
    preset: Preset
    network: nn.Module  # f with the averaged weights, on the CPU, in evaluation mode


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``path`` atomically."""
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    write_tensors({"format": FORMAT, **content}, path)


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write what `torch.load` reads, atomically. torch writes to memory: it turns the error of a
    file into its own.
    """
    memory = io.BytesIO()
    torch.save(content, memory)
    write_file(path, memory.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without unpickling code: tensors and plain values only."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of this program")
        return Checkpoint(
            **{name: content[name] for name in Checkpoint.__slots__ if name in content}
        )
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
        average = averaged_model(build_network(preset.network))
        average.load_state_dict(checkpoint.average)
    # Missing and unknown fields, values out of range, weights of other names or shapes.
    except (ValueError, RuntimeError) as exc:
        raise UserError(f"{folder / FILE}: this program does not know its network") from exc
    return TrainedModel(checkpoint=checkpoint, preset=preset, network=average.module.eval())


def rotate(folder: Path, step: int, keep: int) -> None:
    """Keep the present checkpoint as `checkpoint-STEP.pt` as well, and delete all but the last
    ``keep`` of those files.

    The last ones are those written last. With ``keep`` = 1 nothing is copied and nothing is
    deleted, so files that an earlier command kept stay.
    """
    if keep == 1:
        return
    with (
        atomic_write(folder / f"checkpoint-{step:07d}.pt") as file,
        (folder / FILE).open("rb") as content,
    ):
        shutil.copyfileobj(content, file)
    numbered = (path for path in folder.iterdir() if _NUMBERED.fullmatch(path.name))
    for path in sorted(numbered, key=lambda path: (path.stat().st_mtime_ns, path.name))[:-keep]:
        path.unlink()


def continued_preset(
    preset: Preset, saved: Checkpoint, *, out: Path, data: Dataset, seed: int, bf16: bool
) -> Preset:
    """The preset with which a run continues.

    Only the card's fields and the number of steps may differ. With more steps, stages that are done
    keep their length and the others share what is left; a run that is finished trains its last
    stage further.
    """
    try:
        recorded = Preset.from_dict(saved.preset)
    except ValueError as exc:
        raise UserError(
            f"{out} holds a run of another version of this program; choose another --out"
        ) from exc
    before = _settings(
        recorded, saved.seed, saved.data["sha256"], bf16=bool(saved.provenance.get("bf16"))
    )
    now = _settings(preset, seed, data.sha256, bf16=bf16)
    differences = [
        # what stages hold, few people choose by hand
        name if name == "stages" else f"{name} {value}, now {now[name]}"
        for name, value in before.items()
        if value != now[name]
    ]
    if preset.steps < recorded.steps:
        differences.append(f"steps {recorded.steps}, now {preset.steps}, and they may only grow")
    if differences:
        raise UserError(
            f"{out} holds a run with other options: {'; '.join(differences)}; choose another --out"
        )
    return replace(preset, stages=_stages(preset, recorded, saved.stage))


def _settings(preset: Preset, seed: int, sha256: str, *, bf16: bool) -> dict[str, Any]:
    """What a run keeps: all but what only the card uses, and the length of stages."""
    values = preset.to_dict() | dataclasses.asdict(preset.network)
    for name in (*CARD_FIELDS, "network"):
        del values[name]
    return values | {
        "stages": [replace(stage, steps=0, warmup=0) for stage in preset.stages],
        "seed": seed,
        "data": f"of SHA-256 {sha256[:12]}",
        "precision": "bf16" if bf16 else "fp32",
    }


def _stages(preset: Preset, recorded: Preset, present: int) -> tuple[Stage, ...]:
    """The recorded stages; the present one and those after it share the additional steps."""
    if preset.steps <= recorded.steps:
        return recorded.stages
    done = recorded.stages[:present]
    rest = preset.stages[present:]
    steps = split_steps(
        preset.steps - sum(stage.steps for stage in done), [stage.steps for stage in rest]
    )
    return (*done, *(replace(stage, steps=n) for stage, n in zip(rest, steps, strict=True)))


_PACKAGE = Path(__file__).parents[1]


def source_digest() -> str:
    """SHA-256 over the names and sources of the modules that decide what a run computes."""
    digest = hashlib.sha256()
    for path in sorted(
        path for folder in ("data", "training") for path in (_PACKAGE / folder).glob("*.py")
    ):
        digest.update(f"{path.parent.name}/{path.name}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def record(arguments: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint stores about the command that trains."""
    return {
        "command": command(arguments),
        "commit": commit(),
        "sources": source_digest(),
    }


def commit() -> str | None:
    """Commit of the source tree; None if it is not a clean git tree."""
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", "model_export", "service/domain")
        return None if changes else head
    except (OSError, subprocess.CalledProcessError):
        return None


def command(arguments: Sequence[str]) -> str:
    """The command line with every path cut to its last part, so that it shows no folders of this
    machine.
    """
    return "python -m model_export " + shlex.join(
        _strip_folders(argument) for argument in arguments
    )


def _strip_folders(argument: str) -> str:
    option, equals, value = (
        argument.partition("=") if argument.startswith("--") else ("", "", argument)
    )
    # `runs/NAME` and `models/NAME/VERSION` are documented places and stay, so that the command can
    # be repeated.
    known = value.startswith(("runs/", "models/"))
    return option + equals + (Path(value).name if "/" in value and not known else value)


def _git(*arguments: str) -> str:
    # The arguments are constants of this module.
    git = ["git", "-C", str(_PACKAGE.parent), *arguments]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
