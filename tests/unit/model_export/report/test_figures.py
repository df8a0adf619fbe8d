import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_export.cli import main
from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.export.artifact import Artifact, OnnxFunction
from model_export.report.figures import (
    FIGURES,
    FigureContext,
    ImageGrid,
    file_name,
    first_of_classes,
    plot_losses,
    restoration_figures,
)
from model_export.training.stages import Weights
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import FloatRows, slerp
from tests.helpers.tiny_training import contents

GREY = {file_name(figure, 1) for figure in FIGURES if figure not in ("grey", "sketch", "pages")}


def command(models: Path, data_file: Path, out: Path, *more: str) -> list[str]:
    model = str(models / "tiny" / "1")
    return ["figures", "--model", model, "--data", str(data_file), "--out", str(out), "--threads", "1", *more]


@pytest.fixture(scope="module")
def artifact(models: Path) -> Artifact:
    return Artifact.read(models / "tiny" / "1", threads=1)


@pytest.fixture(scope="module")
def drawn(models: Path, data_file: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures") / "docs" / "tiny"
    assert main(command(models, data_file, out, "--steps", "12", "--run", str(tiny_run))) == 0
    return out


def cell(png: bytes, grid: ImageGrid, row: int, column: int) -> NDArray[np.uint8]:
    """A picture of a figure at its own size, after a look that its pixels were enlarged without smoothing."""
    crop = np.asarray(Image.open(io.BytesIO(png)).crop(grid.box(row, column)))
    small = crop[:: grid.scale, :: grid.scale]
    assert np.array_equal(small.repeat(grid.scale, 0).repeat(grid.scale, 1), crop)
    return small


def shown(png: bytes, grid: ImageGrid, row: int, count: int) -> NDArray[np.uint8]:
    return np.stack([cell(png, grid, row, column) for column in range(count)])[:, None]


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
    assert contents(tmp_path) == {name: before[name] for name in GREY - {"losses.svg", "repeated.png"}}


def test_figures_of_latents(artifact: Artifact, data: Dataset, drawn: Path) -> None:
    f, z = artifact.function, artifact.noise.rows(0, 0, 96)
    context = FigureContext(artifact, data)
    generation, samples, interpolation = context.generation(), context.samples(), context.interpolation()
    assert [label for label, _ in generation.rows] == ["z", "f(z)", "f(f(z))", "f(f(f(z)))"]
    assert samples.rows[1][0] == "z 12-23"
    assert interpolation.columns == [f"t = {i / 10:.1f}" for i in range(11)]
    arc = np.stack([slerp(z[6], z[7], i / 10) for i in range(11)])
    for name, grid, row, rows in (
        ("generation", generation, 0, z[:12]),
        ("generation", generation, 3, f(f(f(z[:12])))),
        ("samples", samples, 7, f(z[84:])),
        ("interpolation", interpolation, 3, f(arc)),
    ):
        png = (drawn / f"{name}.png").read_bytes()
        assert np.array_equal(shown(png, grid, row, len(rows)), to_levels(rows)), name


def test_restoration_shows_picture_corrupted_and_restored(artifact: Artifact, data: Dataset, drawn: Path) -> None:
    labels = data.held_out_labels
    assert labels is not None
    x = to_rows(data.held_out[first_of_classes(labels.numpy(), 80, 12)].numpy())
    for figure in restoration_figures(artifact.card):
        grid, png = (
            FigureContext(artifact, data).restoration(figure),
            (drawn / file_name(figure.figure, 1)).read_bytes(),
        )
        corrupted = figure.corrupt(x)
        once = artifact.function(corrupted)
        for row, rows in enumerate([x, corrupted, once, artifact.function(once)]):
            assert np.array_equal(shown(png, grid, row, 12), to_levels(rows)), figure.name


def test_arithmetic_keeps_the_length_of_noise(artifact: Artifact, data: Dataset) -> None:
    rows = dict(FigureContext(artifact, data).arithmetic().rows)
    a, b, c = np.split(artifact.noise.rows(0, 0, 36).astype(np.float64), 3)
    assert artifact.card.noise is not None
    for label, total in {"f(a + b)": a + b, "f(a + b + c)": a + b + c, "f(a - b + c)": a - b + c}.items():
        length = np.sqrt(np.square(total).sum((1, 2, 3), keepdims=True))
        z = (total * artifact.card.noise.norm / length).astype(np.float32)
        np.testing.assert_allclose(rows[label], artifact.function(z), atol=1e-5)


@pytest.mark.parametrize(("steps", "ks"), [(1, [0, 1]), (12, [0, 1, 10, 12]), (100, [0, 1, 10, 20, 100])])
def test_repeated_application_stops_at_the_limit(artifact: Artifact, data: Dataset, steps: int, ks: list[int]) -> None:
    grid = FigureContext(artifact, data).repeated(steps)
    assert [label for label, _ in grid.rows] == [f"k = {k}" for k in ks]
    rows = artifact.noise.rows(0, 0, 8)
    for _ in range(steps):
        rows = artifact.function(rows)
    assert np.array_equal(grid.rows[-1][1], rows)


class Painted(OnnxFunction):
    """A colour function that needs no file: halves every value."""

    def __init__(self) -> None:
        pass

    def run_batch(self, rows: FloatRows) -> FloatRows:
        return rows / np.float32(2)


def test_colour_models_get_grey_and_sketch_in_colour(artifact: Artifact, data: Dataset) -> None:
    card = artifact.card.model_copy(update={"shape": (3, 8, 8)})
    painted = Artifact(folder=artifact.folder, data=b"", card=card, noise=artifact.noise, function=Painted())
    figures = {figure.figure for figure in restoration_figures(card)}
    grey_figures = {figure.figure for figure in restoration_figures(artifact.card)}
    assert figures == {*grey_figures, "grey", "sketch"} - {"thinned"}
    rows = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    colourful = Dataset("c", "s", "l", data.train, data.held_out.new_tensor(rows))
    (figure,) = (figure for figure in restoration_figures(card) if figure.figure == "grey")
    grid = FigureContext(painted, colourful).restoration(figure)
    png = grid.encode("PNG")
    assert Image.open(io.BytesIO(png)).mode == "RGB"
    assert np.array_equal(cell(png, grid, 0, 4), rows[4].transpose(1, 2, 0))  # without classes, the first ones
    halved = to_levels(Painted().run_batch(figure.corrupt(to_rows(rows[4:5]))))
    assert np.array_equal(cell(png, grid, 2, 4), halved[0].transpose(1, 2, 0))
    exact, close = (np.asarray(Image.open(io.BytesIO(file))).astype(float) for file in (png, grid.encode("WEBP")))
    assert 0.0 < np.abs(close - exact).mean() < 16.0  # noise, which WebP keeps worst


def test_pictures_are_the_first_of_every_class() -> None:
    labels = np.array([2, 2, 0, 1, 0, 2])
    assert first_of_classes(labels, 6, 4).tolist() == [2, 3, 0, 4]
    assert first_of_classes(labels, 6, 99).tolist() == [2, 3, 0, 4, 1, 5]
    assert first_of_classes(None, 6, 4).tolist() == [0, 1, 2, 3]
    assert first_of_classes(None, 2, 4).tolist() == [0, 1]


@pytest.mark.parametrize(("side", "scale"), [(28, 3), (64, 2), (128, 1)])
def test_small_pictures_are_enlarged(side: int, scale: int) -> None:
    grid = ImageGrid(caption="c", rows=[("long label", np.zeros((3, 1, side, side), np.float32))] * 2, columns=["a"])
    assert grid.scale == scale
    image = Image.open(io.BytesIO(grid.encode("PNG")))
    left, top, right, bottom = grid.box(1, 2)
    assert (right - left, bottom - top) == (scale * side, scale * side)
    assert right <= image.width
    assert bottom <= image.height
    boxes = [grid.box(row, column) for row in range(2) for column in range(3)]
    covered = np.zeros((image.height, image.width), int)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1  # no picture lies on another
    ink = (np.asarray(image) != 255) & (covered == 0)
    assert ink[: boxes[0][1]].any()  # caption
    assert ink[boxes[0][1] :, : boxes[0][0]].any()  # labels


def log(tmp_path: Path, *entries: dict[str, Any] | str) -> Path:
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def texts(svg: bytes) -> set[str]:
    return {element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


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


def test_every_term_has_a_colour_of_its_own(tmp_path: Path) -> None:
    terms = {field.name: 1.0 for field in dataclasses.fields(Weights)}
    run = log(tmp_path, {"step": 9000, "stage": "s", **terms}, {"step": 9001, "stage": "s", **terms})
    legend = plot_losses(run).decode().partition('id="legend_1"')[2]
    assert len(set(re.findall(r"stroke: (#\w+)", legend))) == len(terms)


@pytest.mark.parametrize("line", ["", '{"step": 1, "stage": "s"}', '{"step": 1, "stage": "s", "rec": NaN}', "[]"])
def test_a_log_without_losses_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no losses in it"):
        plot_losses(log(tmp_path, line))
