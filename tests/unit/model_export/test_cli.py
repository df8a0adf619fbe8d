import dataclasses
import json
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from model_export.cli import main
from model_export.export.artifact import Artifact
from model_export.training import checkpoint as checkpoints
from model_export.training import losses, train
from service.artifact.files import METRICS_FILE, MODEL_FILES
from tests.helpers.folders import contents
from tests.helpers.tiny_training import TinyModel, patterns, train_arguments


def test_train_export_verify_evaluate(
    tiny_run: Path, data_file: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    card = (
        "--description Bars. --title Bars --prompt Draw --licence MIT --polarity "
        "light-on-dark --background -0.5"
    )
    export = f"export --run {tiny_run} --models {models} --version 1 --force --threads 1".split()
    assert main([*export, *card.split(), "--generate-steps", "3", "--fp16"]) == 0
    folder = models / "tiny" / "1"
    exported = Artifact.read(folder).card
    assert (exported.description, exported.licence) == ("Bars.", "MIT")
    assert (exported.title, exported.prompt) == ("Bars", "Draw")
    assert (exported.background, exported.steps.generate) == ((-0.5,), 3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == list(MODEL_FILES.values())
    verify = f"verify --run {tiny_run} --model {folder} --threads 1"
    assert main(verify.split()) == 0
    assert capsys.readouterr().out.splitlines() == lines[:2]
    evaluate = f"evaluate --model {folder} --data {data_file} --cache {cache} --threads 1"
    assert main([*evaluate.split(), "--samples", "20", "--steps", "1"]) == 0
    table = json.loads((folder / METRICS_FILE).read_text())
    text = capsys.readouterr().out
    assert table["protocol"]["samples"] == 20
    assert table["warnings"]  # a training of a second is poor
    assert all(warning in text for warning in table["warnings"])
    assert main(export) == 0
    assert not (folder / MODEL_FILES["fp16"]).exists()


@pytest.fixture(scope="module")
def others(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and a run that are not those of the tiny model."""
    folder = tmp_path_factory.mktemp("others")
    x = patterns(30, 9)[0]
    np.savez(folder / "other.npz", x_train=x, x_test=x)
    shutil.copytree(tiny_run, folder / "run")
    saved = checkpoints.load(tiny_run / checkpoints.FILE)
    checkpoints.save(
        dataclasses.replace(saved, provenance={"command": "x"}), folder / "run" / checkpoints.FILE
    )
    return folder


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train --preset mnits --data {data} --out {tmp}", "no preset 'mnits'"),
        ("train --preset tiny --data {tmp}/none.npz --out {tmp}", "no such file or folder"),
        ("train --preset tiny --out {tmp}", "--data: name the pictures"),
        ("train --preset tiny --data {data} --out {tmp} --name 'My Model'", "--name My Model"),
        ("train --preset tiny --data {data} --out {tmp} --size 16", "the preset wants"),
        ("train --preset tiny --data {data} --out {run} --seed 9", "choose another --out"),
        ("train --preset tiny --data {data} --out {tmp} --corruptions fog", "noise, blur"),
        ("train --preset tiny --data {data} --dry-run --keep 0", "--keep"),
        ("train --preset tiny --data {data} --out ''", "--out: the path is empty"),
        ("train --preset tiny --data {data} --out {tmp} --size 0", "--size 0: 8 to 1024"),
        ("train --preset tiny --data {data} --dry-run --steps 2", "has 3 stages"),
        ("train --preset tiny --data {data} --dry-run --batch -1", "--batch must be at least 1"),
        ("train --preset tiny --data {data} --dry-run --seed -1", "--seed -1"),
        ("export --run {tmp} --models {tmp}", "no checkpoint at"),
        ("export --run {run} --models {tmp} --background 2", "--background must lie in the range"),
        ("export --run {run} --models {tmp} --background 0 0", "needs one value per channel"),
        ("export --run {run} --models {data}", "patterns.npz"),
        ("export --run {run} --models {tmp} --version 0", "version '0'"),
        ("card --model {tmp} --out {tmp}/card.md", "no model at"),
        ("evaluate --model {model} --data {other}", "other.npz"),
        ("evaluate --model {model} --data {data} --samples 1", "--samples 1"),
        ("evaluate --model {model} --data {data} --steps 0", "--steps 0"),
        (
            "figures --model {model} --data {data} --out {tmp} --threads 1 --seed 4294967296",
            "--seed 4294967296",
        ),
        ("verify --run {altered} --model {model}", "differs by its command"),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_exit_code_2(
    command: str,
    says: str,
    tiny: TinyModel,
    others: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(tiny.run)
    places = {
        "data": tiny.data_file,
        "tmp": tmp_path,
        "run": tiny.run,
        "model": tiny.models / "tiny" / "1",
    }
    places |= {"other": others / "other.npz", "altered": others / "run"}
    assert main([word.format(**places) for word in shlex.split(command)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    line = error.rpartition("\r")[2].lstrip()  # after the progress bar, where one had begun
    assert re.fullmatch(r"(?:\d+%.*\n)?python -m model_export \w+: .+\n", line)
    assert says in line
    assert contents(tiny.run) == before
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["export", "--run"],
        ["export", "--run", "x", "--threads", "-1"],
    ],
)
def test_a_wrong_command_line_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m model_export" in capsys.readouterr().err


def test_a_stopped_training_says_how_to_go_on(
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    original = losses.distance
    calls = iter(range(100))

    def distance(*arguments: Any) -> Tensor:
        if next(calls) == 5:
            signal.raise_signal(signal.SIGINT)
            assert "\nstopping at step 4; again to stop now\n" in capfd.readouterr().err
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a second one ends it
        return original(*arguments)

    monkeypatch.setattr(losses, "distance", distance)
    assert main(train_arguments(data_file, tmp_path)) == 130
    message = capfd.readouterr().out.splitlines()[-1]
    assert "stopped at step 4 of 56" in message


def test_grids_come_by_time_and_the_next_commands_work(
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_FIRST_GRID_S", 0.0)
    assert main(train_arguments(data_file, Path("my run"), "--steps", "4")) == 0
    *_, first, last, _, export, serve = capsys.readouterr().out.splitlines()
    for line, step in ((first, 1), (last, 4)):
        assert line == f"samples: my run/samples/{step:07}.png"
        with Image.open(line.removeprefix("samples: ")) as grid:
            assert grid.size == (16 * 9 + 1, 12 * 9 + 1)
    assert main(shlex.split(export)[3:]) == 0
    assert (tmp_path / "models" / "tiny" / "1" / "model.onnx").is_file()
    assert serve == "ign serve --models models --default-model tiny"


def test_quick_fits_own_pictures_and_says_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of_shapes(tmp_path / "my shapes", 12)
    assert main(["train", "--data", str(data), "--quick", "--size", "8", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "preset `quick`, --size 8 --channels 3" in said
    assert re.search(r"about \d.* on one core", said)


def folder_of_shapes(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        picture = Image.new("RGB", (12, 12), "white")
        picture.paste((200, 10 * (i % 20), 30), (3, 3, 9, 5 + i % 5))
        picture.save(folder / f"{i:03}.png")
    return folder


def test_data_refuses_what_train_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder_of_shapes(tmp_path / "bad", 12)
    few = folder_of_shapes(tmp_path / "few", 3)
    (bad / "bad.png").write_bytes(b"no picture")
    for data in (bad, few):
        assert main(["data", str(data)]) == 2
        refused = capsys.readouterr().err.partition(" data: ")[2]
        assert main(["train", "--data", str(data), "--dry-run"]) == 2
        assert capsys.readouterr().err.partition(" train: ")[2] == refused != ""
    assert main(["data", str(bad), "--skip-bad"], prog="ign") == 0
    said = capsys.readouterr().out
    assert "12 pictures, 12×12, colour, light background\nleft out, 1: bad.png\n" in said
    assert "small, --size 12 --channels 3" in said
    assert f"ign train --data {bad} --skip-bad --out runs/NAME --quick\n" in said
