"""The log of a run: JSON lines."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from model_export.files import write_file


@contextmanager
def open_log(path: Path, step: int) -> Iterator[Callable[[int, str, Mapping[str, float]], None]]:
    """Open the log of a run, without the lines after the step from which it continues.

    Yields what appends a line: of `step`, `stage`, and the terms of the loss at that step.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    write_file(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step).encode())
    with path.open("a") as file:

        def write(step: int, stage: str, values: Mapping[str, float]) -> None:
            file.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
            file.flush()

        yield write


def _step_of(line: str) -> float:
    """The step of a line. One that a crash has cut has none: infinity lets it be deleted."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
