"""Where a model comes from: the sources that trained it, their commit, and the command."""

import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parents[1]
# The modules whose source decides what a run computes.
_TRAINING_MODULES = (
    "data/corruptions",
    "data/datasets",
    "data/known_sets",
    "data/noise",
    "data/picture_files",
    "training/batches",
    "training/discriminator",
    "training/distributed",
    "training/drifting",
    "training/execution",
    "training/losses",
    "training/matching",
    "training/network",
    "training/objective",
    "training/presets",
    "training/resume",
    "training/stage_setup",
    "training/start",
    "training/stages",
    "training/train",
)


def source_digest() -> str:
    """SHA-256 over the names and sources of the modules that decide what a run computes."""
    digest = hashlib.sha256()
    for module in _TRAINING_MODULES:
        digest.update(module.encode() + b"\0" + (_PACKAGE / f"{module}.py").read_bytes())
    return digest.hexdigest()


def record(arguments: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint stores about the command that trains: command, commit, sources, threads and torch version."""
    return {
        "command": command(arguments),
        "commit": commit(),
        "sources": source_digest(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def commit() -> str | None:
    """Commit of the source tree; None if it is not a clean git tree."""
    root = _PACKAGE.parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head if not _git(root, "status", "--porcelain", "--", "model_export", "service/domain") else None
    except (OSError, subprocess.CalledProcessError):
        return None


def command(arguments: Sequence[str]) -> str:
    """The command line with every path cut to its last part, so that it shows no folders of this machine."""
    return "python -m model_export " + shlex.join(_strip_folders(argument) for argument in arguments)


def _strip_folders(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    # `runs/NAME` and `models/NAME/VERSION` are documented places and stay, so that the command can be repeated.
    known = value.startswith(("runs/", "models/"))
    return option + equals + (Path(value).name if "/" in value and not known else value)


def _git(root: Path, *arguments: str) -> str:
    # The arguments are constants of this module.
    done = subprocess.run(  # noqa: S603
        ["git", "-C", str(root), *arguments],  # noqa: S607
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
