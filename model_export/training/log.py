"""The log of a run: JSON lines, and optionally the same values for TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model_export.errors import UserError
from model_export.files import atomic_write
from model_export.training.throughput import Throughput

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """Appends lines to ``path`` and deletes those after the checkpoint from which the run continues.

    A line has `step`, `stage`, and either the terms of the loss at that step or `throughput` of the interval that ends
    there.

    Args:
        board: folder for TensorBoard, or None.
    """

    def __init__(self, path: Path, step: int, *, board: Path | None = None) -> None:
        self._board = None if board is None else _summary_writer(board, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())
        self._path = path

    def __enter__(self) -> "Log":
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def terms(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Log the terms of the loss at a step."""
        self._write({"step": step, "stage": stage, **values})
        self._scalars(step, {f"loss/{name}": value for name, value in values.items()})

    def throughput(self, step: int, stage: str, measured: Throughput) -> None:
        """Log the throughput of the interval that ends at this step."""
        self._write({"step": step, "stage": stage, "throughput": measured.to_dict()})
        self._scalars(
            step,
            {"throughput/pictures_per_second": measured.pictures_per_second, "throughput/outside": measured.outside},
        )

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


def _summary_writer(folder: Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        raise UserError("--tensorboard: install the extra, as in pip install 'ign-service[tensorboard]'") from exc
    return SummaryWriter(str(folder), purge_step=step + 1)


def _step_of(line: str) -> float:
    """The step of a line. A line that a crash has cut has none; infinity makes the caller delete it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
