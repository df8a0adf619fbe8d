"""A virtual environment for every peer, created with pip outside the repository."""

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
from benchmarks.peers.servers import ServerSpec

_INSTALL_S: Final = 1800.0
_SAME_VERSION: Final = ("onnxruntime", "pillow")  # the versions of this environment
_NAMED: Final = ("onnxruntime", "numpy", "pillow", "fastapi", "starlette", "uvicorn", "uvloop")
_STAMP: Final = "installed.json"


class NotInstalled(Exception):
    """An environment cannot be created; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A complete environment.

    Args:
        python: its interpreter.
        versions: of the main packages.
    """

    python: str
    versions: dict[str, str]


def default_folder() -> Path:
    """The default folder of the environments."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ign-service" / "peers"


def inside_repository(folder: Path) -> bool:
    """Whether the folder is in the repository, which is not allowed."""
    return folder.resolve().is_relative_to(ROOT)


def requirements(server_spec: ServerSpec) -> list[str]:
    """The requirements for pip: the newest release of the server, and `_SAME_VERSION` as in this environment."""
    return [*server_spec.packages, *(f"{name}=={version(name)}" for name in _SAME_VERSION)]


def environment(server_spec: ServerSpec, folder: Path) -> Environment:
    """The environment of a server in this folder, created if it is missing or has other requirements.

    Raises:
        NotInstalled: pip failed.
    """
    if server_spec.module is None:
        return Environment(python=sys.executable, versions=_versions(sys.executable, ["ign-service"]))
    place = folder / server_spec.name
    python = place / "bin" / "python"
    wanted = requirements(server_spec)
    if _stamp(place) != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(place)])
        _run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *wanted])
        (place / _STAMP).write_text(json.dumps(wanted), encoding="utf-8")
    return Environment(python=str(python), versions=_versions(str(python), [server_spec.distribution]))


def _stamp(place: Path) -> object:
    try:
        return json.loads((place / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _versions(python: str, first: Sequence[str]) -> dict[str, str]:
    """The versions of the installed packages among ``first`` and `_NAMED`."""
    installed = json.loads(_run([python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]))
    versions = {each["name"].lower(): each["version"] for each in installed}
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
