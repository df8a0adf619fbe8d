import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_export.errors import UserError
from model_export.files import atomic_write
from model_export.training import checkpoint as checkpoints
from model_export.training.checkpoint import Checkpoint
from tests.helpers.tiny_training import contents


def example(step: int = 3) -> Checkpoint:
    return Checkpoint(
        preset={"name": "tiny"},
        seed=1,
        stage=0,
        stage_step=step,
        step=step,
        network={"w": torch.arange(3.0)},
        average={"w": torch.ones(3)},
        optimiser={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        teacher=None,
        data={"name": "x.npz"},
        provenance={"command": "train"},
        critic=None,
    )


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            checkpoints.save(example(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, pickle.PicklingError])
def test_a_failed_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error):
        write()
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("where", ["folder", "file/below"])
def test_an_error_names_no_temporary_file(where: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with (
        pytest.raises((IsADirectoryError, NotADirectoryError, FileExistsError)) as caught,
        atomic_write(tmp_path / where),
    ):
        pass
    assert caught.value.filename in (str(tmp_path / where), str(tmp_path / "file"))


class Foreign:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, r"no checkpoint at .*checkpoint\.pt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "damaged checkpoint"),
        (lambda path: torch.save({"format": 1, "preset": Foreign()}, path), "damaged checkpoint"),
        (lambda path: torch.save({"format": 1, "preset": {}}, path), "damaged checkpoint"),
        (lambda path: torch.save({"format": 2}, path), "written by another version"),
    ],
    ids=["missing", "cut", "pickle", "fields", "format"],
)
def test_damaged_and_foreign_files_are_refused(
    damage: Callable[[Path], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(example(), path)
    damage(path)
    with pytest.raises(UserError, match=says):
        checkpoints.load(path)
    assert capsys.readouterr().out == ""


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-mine.pt").touch()
    for step in (8, 16, 24, 24):  # the same step again replaces its copy
        checkpoints.save(example(step), tmp_path / checkpoints.FILE)
        checkpoints.rotate(tmp_path, step, 2)
    expected = [
        "checkpoint-0000016.pt",
        "checkpoint-0000024.pt",
        "checkpoint-mine.pt",
        "checkpoint.pt",
    ]
    assert sorted(contents(tmp_path)) == expected
    assert checkpoints.load(tmp_path / "checkpoint-0000016.pt").step == 16
    checkpoints.rotate(tmp_path, 32, 1)  # one is one, and touches no others
    assert sorted(contents(tmp_path)) == expected
