"""An environment of its own for every peer, made with pip, outside the repository."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import ROOT
from benchmarks.peers.servers import Contestant

_INSTALL_S: Final = 1800.0
_ALIKE: Final = ("onnxruntime", "pillow")  # of the same release as here
_NAMED: Final = ("onnxruntime", "numpy", "pillow", "fastapi", "starlette", "uvicorn", "uvloop")
_STAMP: Final = "installed.json"


class NotInstalled(Exception):
    """An environment cannot be made; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A finished one.

    Args:
        python: its interpreter.
        versions: of what matters.
    """

    python: str
    versions: dict[str, str]


def default_folder() -> Path:
    """Where environments are kept when nothing else is said."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ign-service" / "peers"


def inside_repository(folder: Path) -> bool:
    """Whether it would be, which it must not."""
    return folder.resolve().is_relative_to(ROOT)


def requirements(contestant: Contestant) -> list[str]:
    """What pip is asked for. Newest of the system itself; what all run alike is what this environment has."""
    return [*contestant.packages, *(f"{name}=={version(name)}" for name in _ALIKE)]


def environment(contestant: Contestant, folder: Path) -> Environment:
    """The contestant's environment in this folder, made if it is not there or holds something else.

    Raises:
        NotInstalled: pip could not.
    """
    if contestant.module is None:
        return Environment(python=sys.executable, versions=_versions(sys.executable, ["ign-service"]))
    place = folder / contestant.name
    python = place / "bin" / "python"
    wanted = requirements(contestant)
    if _stamp(place) != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(place)])
        _run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *wanted])
        (place / _STAMP).write_text(json.dumps(wanted), encoding="utf-8")
    return Environment(python=str(python), versions=_versions(str(python), [contestant.distribution]))


def _stamp(place: Path) -> object:
    try:
        return json.loads((place / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _versions(python: str, first: Sequence[str]) -> dict[str, str]:
    """By distribution; of those that are installed."""
    found = json.loads(_run([python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]))
    versions = {each["name"].lower(): each["version"] for each in found}
    wanted = dict.fromkeys([*first, *_NAMED])
    return {name: versions[name] for name in wanted if name in versions}


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=True)
    except subprocess.CalledProcessError as exc:
        raise NotInstalled(f"`{' '.join(command[1:5])} …`: {exc.stderr.strip()[-600:]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NotInstalled(f"`{' '.join(command[1:5])} …` took more than {_INSTALL_S:.0f} s") from exc
    return done.stdout
