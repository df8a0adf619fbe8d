import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_export.cli import main
from model_export.data.datasets import Dataset
from model_export.export.artifact import Artifact
from model_export.report.figures import (
    FIGURES,
    FigureContext,
    ImageGrid,
    file_name,
    first_of_classes,
    plot_losses,
    restoration_figures,
)
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import slerp
from tests.helpers.tiny_training import contents

GREY = {file_name(figure, 1) for figure in FIGURES if figure not in ("grey", "sketch", "pages")}


def command(models: Path, data_file: Path, out: Path, *more: str) -> list[str]:
    model = str(models / "tiny" / "1")
    return [
        "figures",
        "--model",
        model,
        "--data",
        str(data_file),
        "--out",
        str(out),
        "--threads",
        "1",
        *more,
    ]


@pytest.fixture(scope="module")
def artifact(models: Path) -> Artifact:
    return Artifact.read(models / "tiny" / "1", threads=1)


@pytest.fixture(scope="module")
def drawn(
    models: Path, data_file: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("figures") / "docs" / "tiny"
    assert main(command(models, data_file, out, "--steps", "12", "--run", str(tiny_run))) == 0
    return out


def test_one_command_draws_every_figure(drawn: Path) -> None:
    assert set(contents(drawn)) == GREY
    for name, content in contents(drawn).items():
        if name.endswith(".png"):
            image = Image.open(io.BytesIO(content))
            assert (image.mode, image.info) == ("L", {}), name  # no text, no dates
            assert len(content) < 60_000, name


def test_an_interrupted_command_keeps_whole_figures_only(
    models: Path, data_file: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: FigureContext, steps: int) -> ImageGrid:
        raise KeyboardInterrupt

    monkeypatch.setattr(FigureContext, "repeated", interrupt)
    assert main(command(models, data_file, tmp_path, "--steps", "12")) == 130
    before = contents(drawn)
    assert contents(tmp_path) == {
        name: before[name] for name in GREY - {"losses.svg", "repeated.png"}
    }


def test_the_rows_of_a_figure_stand_at_their_places(
    artifact: Artifact, data: Dataset, drawn: Path
) -> None:
    context = FigureContext(artifact, data)
    (noisy,) = (
        figure for figure in restoration_figures(artifact.card) if figure.figure == "noise_0.8"
    )
    labels = data.held_out_labels
    assert labels is not None
    x = to_rows(data.held_out[first_of_classes(labels.numpy(), 80, 12)].numpy())
    f = artifact.function
    corrupted = noisy.corrupt(x)
    grid = context.restoration(noisy)
    image = Image.open(drawn / "noise_0.8.png")
    for row, rows in enumerate([x, corrupted, f(corrupted), f(f(corrupted))]):
        for column, levels in enumerate(to_levels(rows)[:, 0]):
            large = levels.repeat(grid.scale, 0).repeat(grid.scale, 1)
            assert np.array_equal(np.asarray(image.crop(grid.box(row, column))), large)
    z = artifact.noise.rows(0, 0, 8)
    arc = np.stack([slerp(z[6], z[7], i / 10) for i in range(11)])
    np.testing.assert_array_equal(context.interpolation().rows[3][1], f(arc))


def log(tmp_path: Path, *entries: dict[str, Any] | str) -> Path:
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def texts(svg: bytes) -> set[str]:
    return {
        element.text or ""
        for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    }


def test_the_plot_names_terms_and_stages(tmp_path: Path) -> None:
    run = log(
        tmp_path,
        {"step": 50, "stage": "first", "rec": 1.0, "lr": 0.1},
        {"step": 100, "stage": "first", "rec": 0.1},
        {"step": 150, "stage": "second <2>", "rec": 0.01, "tight": -0.1},
        {"step": 200, "stage": "second <2>", "rec": 0.001, "tight": -0.01},
        '{"step": 250, "sta',
    )
    svg = plot_losses(run)
    assert {"first", "second <2>", "rec", "tight", "200", "step"} <= texts(svg)
    assert "lr" not in texts(svg)
    assert plot_losses(run) == svg
