import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from model_export.errors import UserError
from model_export.training.log import Log
from model_export.training.log import Throughput

MEASURED = Throughput(steps=4, pictures=64, seconds=2.0, phases={"compute": 1.5})


def test_losses_and_throughput_are_lines(tmp_path: Path) -> None:
    with Log(tmp_path / "run" / "log.jsonl", 0) as log:
        log.terms(4, "imle", {"rec": 0.5})
        log.throughput(4, "imle", MEASURED)
    losses, throughput = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert losses == {"step": 4, "stage": "imle", "rec": 0.5}
    assert throughput == {"step": 4, "stage": "imle", "throughput": MEASURED.to_dict()}


def test_what_lies_past_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"step": 4, "stage": "imle", "rec": 0.5}\n'
    path.write_text(kept + '{"step": 5, "stage": "imle"}\n[1]\n{"step": null}\n{"ste')
    with Log(path, 4):
        pass
    assert path.read_text() == kept


class Board:
    """A `SummaryWriter` that writes into itself."""

    made: "list[Board]"

    def __init__(self, folder: str, purge_step: int) -> None:
        self.opened, self.scalars, self.closed = (folder, purge_step), list[tuple[str, float, int]](), False
        Board.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True


def package(monkeypatch: pytest.MonkeyPatch, writer: Any) -> None:
    """Have `torch.utils.tensorboard` be this, or be missing."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.__dict__.update({} if writer is None else {"SummaryWriter": writer})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def test_tensorboard_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Board.made = []
    package(monkeypatch, Board)
    with Log(tmp_path / "log.jsonl", 3, board=tmp_path / "tensorboard") as log:
        log.terms(4, "imle", {"rec": 0.5, "imle": 0.25})
        log.throughput(4, "imle", MEASURED)
    (board,) = Board.made
    assert board.opened == (str(tmp_path / "tensorboard"), 4)
    assert board.scalars == [
        ("loss/rec", 0.5, 4),
        ("loss/imle", 0.25, 4),
        ("throughput/pictures_per_second", 32.0, 4),
        ("throughput/outside", 0.25, 4),
    ]
    assert board.closed


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, None)
    with pytest.raises(UserError, match=r"ign-service\[tensorboard\]"):
        Log(tmp_path / "log.jsonl", 0, board=tmp_path / "tensorboard")


def test_the_real_package_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    with Log(tmp_path / "log.jsonl", 0, board=tmp_path / "tensorboard") as log:
        log.terms(4, "imle", {"rec": 0.5})
    assert [path.name.startswith("events.out.tfevents") for path in (tmp_path / "tensorboard").iterdir()] == [True]
