"""Where a model comes from: the sources that trained it, their commit, and the command."""

import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_TRAINING = (
    "data/corruptions",
    "data/datasets",
    "data/noise",
    "training/batches",
    "training/discriminator",
    "training/distributed",
    "training/execution",
    "training/losses",
    "training/matching",
    "training/network",
    "training/objective",
    "training/presets",
    "training/train",
)  # the modules whose text decides what a run computes


def source_digest() -> str:
    """SHA-256 over the sources that decide what a training run computes."""
    digest = hashlib.sha256()
    for module in _TRAINING:
        digest.update(module.encode() + b"\0" + (_PACKAGE / f"{module}.py").read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """Commit of the source tree, or None where it is not a clean git tree."""
    root = _PACKAGE.parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head if not _git(root, "status", "--porcelain", "--", "model_export", "service/domain") else None
    except (OSError, subprocess.CalledProcessError):
        return None


def command(arguments: Sequence[str]) -> str:
    """The command line with paths cut to their last part, so that it names no machine's folders."""
    shown = [_without_folders(argument) for argument in arguments]
    return "python -m model_export " + shlex.join(shown)


def _without_folders(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (value if value.startswith("runs/") else Path(value).name if "/" in value else value)


def _git(root: Path, *arguments: str) -> str:
    # The arguments are constants of this module.
    done = subprocess.run(  # noqa: S603
        ["git", "-C", str(root), *arguments],  # noqa: S607
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
