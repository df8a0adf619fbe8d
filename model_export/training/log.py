"""The log of a run: JSON lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from model_export.files import atomic_write


class Log:
    """Appends lines to ``path`` and deletes those after the checkpoint from which the run
    continues.

    A line has `step`, `stage`, and either the terms of the loss at that step or, where a stage or
    the run ends, its `pictures_per_second`.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text().splitlines() if path.is_file() else []
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in lines if _step_of(line) <= step).encode())
        self._path = path

    def __enter__(self) -> "Log":
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Log the terms of the loss at a step, or the speed."""
        self._file.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
        self._file.flush()


def _step_of(line: str) -> float:
    """The step of a line. A line that a crash has cut has none; infinity makes the caller delete
    it.
    """
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
