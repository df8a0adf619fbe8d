import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.cli import main, parser
from model_export.data.corruptions import CORRUPTIONS
from model_export.data.datasets import Dataset
from model_export.export.artifact import Artifact
from model_export.report.figures import FIGURES, file_name
from model_export.report.model_card import page
from service.artifact.pixels import to_levels, to_rows
from tests.helpers.folders import contents
from tests.helpers.tiny_training import TinyModel

GREY = {file_name(name, 1) for name in FIGURES if name not in ("grey", "sketch_3.5", "pages")}


def test_the_figures_show_what_f_makes(
    models: Path, data_file: Path, data: Dataset, tmp_path: Path
) -> None:
    folder = models / "tiny" / "1"
    words = ["figures", "--model", str(folder), "--data", str(data_file), "--out", str(tmp_path)]
    assert main([*words, "--threads", "1"]) == 0
    assert set(contents(tmp_path)) == GREY
    artifact = Artifact.read(folder, threads=1)
    f = artifact.function
    x = to_rows(data.held_out[:12].numpy())
    corrupted = CORRUPTIONS["noise_0.8"](x)
    image = Image.open(tmp_path / "noise_0.8.png")
    assert (image.mode, image.info) == ("L", {})  # no text, no dates
    for row, rows in enumerate([x, corrupted, f(corrupted), f(f(corrupted))]):
        for column, levels in enumerate(to_levels(rows)[:, 0]):
            left, top = 2 + 26 * column, 2 + 26 * row
            large = levels.repeat(3, 0).repeat(3, 1)
            part = image.crop((left, top, left + 24, top + 24))
            assert np.array_equal(np.asarray(part), large)


@pytest.fixture
def artifact(tiny: TinyModel) -> Artifact:
    return Artifact.read(tiny.models / "tiny" / "1", threads=1)


def commands(text: str) -> list[str]:
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def test_the_command_writes_the_page_of_an_evaluated_model(tiny: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "models" / "tiny.md"
    assert main(["card", "--model", str(tiny.evaluated), "--out", str(out)]) == 0
    text = out.read_text()
    table = tiny.metrics
    assert f"{table['generation']['f']['frechet']:.2f}" in text
    assert f"{table['drift']['f']:.4f}" in text
    for name, row in table["restoration"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{row['input']['psnr']:.1f} → {row['f']['psnr']:.1f}" in line
    assert str(tmp_path) not in text
    assert str(tiny.folder) not in text
    assert main(["card", "--model", str(tiny.evaluated), "--out", str(out)]) == 0
    assert out.read_text() == text
    assert set(contents(out.parent)) == {"tiny.md"}


def test_the_page_says_how_the_model_was_made(artifact: Artifact) -> None:
    card = artifact.card
    text = page(artifact, shown={})
    for value in (card.data.sha256, card.training.sources, card.training.command, card.description):
        assert value in text
    for stage in card.training.config["stages"]:
        assert re.search(
            rf"^\| {stage['name']} \| {stage['steps']:,} \| {stage['lr']:g} \|", text, re.MULTILINE
        )
    assert [
        parser().parse_args(command.split()[3:]).run.__name__[1:] for command in commands(text)
    ] == [
        "train",
        "export",
        "evaluate",
    ]
    train, export, _ = commands(text)
    assert f"--run {train.split('--out ')[1].split()[0]} " in export
