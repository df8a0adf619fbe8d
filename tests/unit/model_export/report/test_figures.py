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
from model_export.data.datasets import Dataset, load_dataset
from model_export.data.pixels import to_levels, to_rows
from model_export.errors import UserError
from model_export.export.artifact import Artifact, OnnxFunction
from model_export.report import loss_curves
from model_export.report.figures import FIGURES, Drawing, first_of_classes
from model_export.report.image_grid import Sheet
from model_export.report.spoilings import grey, sketch, spoilings, thin
from service.domain.latents import FloatRows, slerp
from tests.helpers.tiny_training import contents, patterns

GREY = {name for name in FIGURES if name not in ("grey.png", "sketch.png")}


def command(models: Path, data_file: Path, out: Path, *more: str) -> list[str]:
    model = str(models / "tiny" / "1")
    return ["figures", "--model", model, "--data", str(data_file), "--out", str(out), "--threads", "1", *more]


@pytest.fixture(scope="module")
def data(data_file: Path) -> Dataset:
    return load_dataset(str(data_file), size=8, channels=1)


@pytest.fixture(scope="module")
def artifact(models: Path) -> Artifact:
    return Artifact.read(models / "tiny" / "1", threads=1)


@pytest.fixture(scope="module")
def drawn(models: Path, data_file: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures") / "docs" / "tiny"
    assert main(command(models, data_file, out, "--steps", "12", "--run", str(tiny_run))) == 0
    return out


def cell(png: bytes, sheet: Sheet, row: int, column: int) -> NDArray[np.uint8]:
    """A picture of a figure at its own size, after a look that its pixels were enlarged without smoothing."""
    crop = np.asarray(Image.open(io.BytesIO(png)).crop(sheet.box(row, column)))
    small = crop[:: sheet.scale, :: sheet.scale]
    assert np.array_equal(small.repeat(sheet.scale, 0).repeat(sheet.scale, 1), crop)
    return small


def chunks(png: bytes) -> list[bytes]:
    """The types of a PNG's chunks; text and dates would be chunks of their own."""
    types, place = [], 8
    while place < len(png):
        types.append(png[place + 4 : place + 8])
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return types


def shown(png: bytes, sheet: Sheet, row: int, count: int) -> NDArray[np.uint8]:
    return np.stack([cell(png, sheet, row, column) for column in range(count)])[:, None]


# The command.


def test_one_command_draws_every_figure(drawn: Path) -> None:
    assert set(contents(drawn)) == GREY
    for name, content in contents(drawn).items():
        if name.endswith(".png"):
            assert Image.open(io.BytesIO(content)).mode == "L"
            assert set(chunks(content)) == {b"IHDR", b"IDAT", b"IEND"}, name
            assert len(content) < 60_000, name


def test_the_same_command_gives_the_same_bytes(
    models: Path, data_file: Path, tiny_run: Path, drawn: Path, tmp_path: Path
) -> None:
    assert main(command(models, data_file, tmp_path, "--steps", "12", "--run", str(tiny_run))) == 0
    assert contents(tmp_path) == contents(drawn)


def test_another_seed_gives_other_pictures_and_no_run_no_losses(
    models: Path, data_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(models, data_file, tmp_path, "--steps", "1", "--seed", "5")) == 0
    assert capsys.readouterr().out == f"drew 12 figures in {tmp_path}\n"
    other, before = contents(tmp_path), contents(drawn)
    assert set(other) == GREY - {"losses.svg"}
    assert other["generation.png"] != before["generation.png"]
    assert other["blur.png"] == before["blur.png"]  # made of pictures, not of latents


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--steps", "0"], "--steps 0: at least 1"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "4294967296"], "--seed 4294967296"),
        (["--model", "{tmp}"], "no model at"),
        (["--data", "{tmp}/none.npz"], "no such file or folder"),
        (["--data", "{other}"], "not what tiny/1 was trained on, patterns.npz of another SHA-256"),
        (["--run", "{tmp}"], "no log at"),
        (["--out", "{other}/figures"], "other.npz"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    more: list[str],
    says: str,
    models: Path,
    data_file: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path_factory.mktemp("other") / "other.npz"
    x = patterns(30, 9)[0]
    np.savez(other, x_train=x, x_test=x)
    places = {"tmp": tmp_path, "other": other}
    assert main([*command(models, data_file, tmp_path), *(word.format(**places) for word in more)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .+\n", error)
    assert says in error
    assert contents(tmp_path) == {}


def test_an_interrupted_command_keeps_whole_figures_only(
    models: Path, data_file: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Drawing.repeated
    once = OnnxFunction.once
    calls = 0

    def repeated(self: Drawing, steps: int) -> Sheet:
        monkeypatch.setattr(OnnxFunction, "once", interrupted)
        return original(self, steps)

    def interrupted(self: OnnxFunction, rows: FloatRows) -> FloatRows:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return once(self, rows)

    monkeypatch.setattr(Drawing, "repeated", repeated)
    assert main(command(models, data_file, tmp_path, "--steps", "12")) == 130
    before = contents(drawn)
    assert contents(tmp_path) == {name: before[name] for name in GREY - {"losses.svg", "repeated.png"}}


# What the figures show.


def test_generation_shows_the_model_applied_to_seeded_noise(artifact: Artifact, data: Dataset, drawn: Path) -> None:
    sheet, png = Drawing(artifact, data).generation(), (drawn / "generation.png").read_bytes()
    assert [label for label, _ in sheet.rows] == ["z", "f(z)", "f(f(z))", "f(f(f(z)))"]
    rows = artifact.noise.rows(0, 0, 12)
    for row in range(4):
        assert np.array_equal(shown(png, sheet, row, 12), to_levels(rows))
        rows = artifact.function(rows)


def test_samples_are_the_first_latents_in_order(artifact: Artifact, data: Dataset, drawn: Path) -> None:
    sheet, png = Drawing(artifact, data).samples(), (drawn / "samples.png").read_bytes()
    levels = to_levels(artifact.function(artifact.noise.rows(0, 0, 96)))
    assert sheet.rows[1][0] == "z 12-23"
    assert np.array_equal(np.concatenate([shown(png, sheet, row, 12) for row in range(8)]), levels)


def test_restoration_shows_picture_spoiled_and_projected(artifact: Artifact, data: Dataset, drawn: Path) -> None:
    labels = data.held_out_labels
    assert labels is not None
    x = to_rows(data.held_out[first_of_classes(labels.numpy(), 80, 12)].numpy())
    for spoiling in spoilings(artifact.card):
        sheet, png = Drawing(artifact, data).restoration(spoiling), (drawn / spoiling.file).read_bytes()
        term = spoiling.term
        assert [label for label, _ in sheet.rows] == ["x", term, f"f({term})", f"f(f({term}))"]
        spoiled = spoiling.degrade(x)
        once = artifact.function(spoiled)
        for row, rows in enumerate([x, spoiled, once, artifact.function(once)]):
            assert np.array_equal(shown(png, sheet, row, 12), to_levels(rows)), spoiling.file


def test_clean_pictures_are_shown_before_and_after(artifact: Artifact, data: Dataset) -> None:
    (_, x), (_, once), (label, twice) = Drawing(artifact, data).clean().rows
    assert label == "f(f(x))"
    assert np.array_equal(once, artifact.function(x))
    assert np.array_equal(twice, artifact.function(once))


def test_interpolation_goes_along_great_arcs(artifact: Artifact, data: Dataset, drawn: Path) -> None:
    sheet, png = Drawing(artifact, data).interpolation(), (drawn / "interpolation.png").read_bytes()
    assert sheet.columns == [f"t = {i / 10:.1f}" for i in range(11)]
    z = artifact.noise.rows(0, 0, 16)
    rows = np.stack([slerp(z[6], z[7], i / 10) for i in range(11)])
    assert np.array_equal(shown(png, sheet, 3, 11), to_levels(artifact.function(rows)))


def test_arithmetic_keeps_the_length_of_noise(artifact: Artifact, data: Dataset) -> None:
    rows = dict(Drawing(artifact, data).arithmetic().rows)
    a, b, c = np.split(artifact.noise.rows(0, 0, 36).astype(np.float64), 3)
    for label, total in {"f(a + b)": a + b, "f(a + b + c)": a + b + c, "f(a - b + c)": a - b + c}.items():
        length = np.sqrt(np.square(total).sum((1, 2, 3), keepdims=True))
        z = (total * artifact.card.noise.norm / length).astype(np.float32)
        np.testing.assert_allclose(rows[label], artifact.function(z), atol=1e-5)


@pytest.mark.parametrize(("steps", "ks"), [(1, [0, 1]), (12, [0, 1, 10, 12]), (100, [0, 1, 10, 20, 100])])
def test_repeated_application_stops_at_the_limit(artifact: Artifact, data: Dataset, steps: int, ks: list[int]) -> None:
    sheet = Drawing(artifact, data).repeated(steps)
    assert [label for label, _ in sheet.rows] == [f"k = {k}" for k in ks]
    rows = artifact.noise.rows(0, 0, 8)
    for _ in range(steps):
        rows = artifact.function(rows)
    assert np.array_equal(sheet.rows[-1][1], rows)


class Painted(OnnxFunction):
    """A colour function that needs no file: halves every value."""

    def __init__(self) -> None:
        pass

    def once(self, rows: FloatRows) -> FloatRows:
        return rows / np.float32(2)


def test_colour_models_get_grey_and_sketch_in_colour(artifact: Artifact, data: Dataset) -> None:
    card = artifact.card.model_copy(update={"shape": (3, 8, 8)})
    painted = Artifact(folder=artifact.folder, data=b"", card=card, noise=artifact.noise, function=Painted())
    files = {spoiling.file for spoiling in spoilings(card)}
    assert files == {*(s.file for s in spoilings(artifact.card)), "grey.png", "sketch.png"} - {"thinned.png"}
    rows = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    colourful = Dataset("c", "s", "l", data.train, data.held_out.new_tensor(rows))
    (spoiling,) = (spoiling for spoiling in spoilings(card) if spoiling.file == "grey.png")
    sheet = Drawing(painted, colourful).restoration(spoiling)
    png = sheet.png()
    assert Image.open(io.BytesIO(png)).mode == "RGB"
    assert np.array_equal(cell(png, sheet, 0, 4), rows[4].transpose(1, 2, 0))  # without classes, the first ones
    halved = to_levels(Painted().once(grey(to_rows(rows[4:5]))))
    assert np.array_equal(cell(png, sheet, 2, 4), halved[0].transpose(1, 2, 0))


# Parts.


def test_grey_is_the_mean_of_the_channels() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5)).astype(np.float32)
    g = grey(x)
    np.testing.assert_allclose(g, np.repeat(x.mean(1)[:, None], 3, 1), atol=1e-7)
    assert g.flags.c_contiguous


def test_a_sketch_is_the_picture_over_its_blur() -> None:
    x = np.full((1, 3, 32, 32), 0.3, np.float32)
    np.testing.assert_allclose(sketch(x), 0.0, atol=1e-5)  # nothing to draw
    np.testing.assert_array_equal(sketch(np.full_like(x, -1.0)), -1.0)  # 0 / 1e-10 − 1
    x[..., 16:] = -0.7
    # By hand: the kernel of 21 taps at column 15 sees 11 columns of 1.3 and 10 of 0.3.
    taps = np.exp(-0.5 * (np.arange(-10, 11) / 3.5) ** 2)
    blurred = (taps[:11].sum() * 1.3 + taps[11:].sum() * 0.3) / taps.sum()
    np.testing.assert_allclose(sketch(x)[0, :, 16, 15], 1.3 / blurred - 1.0, rtol=1e-4)


def test_thinning_takes_a_pixel_from_strokes_light_or_dark() -> None:
    x = np.full((1, 1, 28, 28), -1.0, np.float32)
    x[:, :, :, 10:13] = 1.0
    assert (thin(light=True)(x) > 0).sum() == 2 * 28
    assert (thin(light=False)(-x) < 0).sum() == 2 * 28


def test_pictures_are_the_first_of_every_class() -> None:
    labels = np.array([2, 2, 0, 1, 0, 2])
    assert first_of_classes(labels, 6, 4).tolist() == [2, 3, 0, 4]
    assert first_of_classes(labels, 6, 99).tolist() == [2, 3, 0, 4, 1, 5]
    assert first_of_classes(None, 6, 4).tolist() == [0, 1, 2, 3]
    assert first_of_classes(None, 2, 4).tolist() == [0, 1]


@pytest.mark.parametrize(("side", "scale"), [(8, 3), (28, 3), (42, 3), (64, 2), (128, 1), (256, 1)])
def test_small_pictures_are_enlarged(side: int, scale: int) -> None:
    sheet = Sheet(caption="c", rows=[("long label", np.zeros((3, 1, side, side), np.float32))] * 2, columns=["a"])
    assert sheet.scale == scale
    image = Image.open(io.BytesIO(sheet.png()))
    left, top, right, bottom = sheet.box(1, 2)
    assert (right - left, bottom - top) == (scale * side, scale * side)
    assert right <= image.width
    assert bottom <= image.height
    boxes = [sheet.box(row, column) for row in range(2) for column in range(3)]
    covered = np.zeros((image.height, image.width), int)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1  # no picture lies on another
    ink = (np.asarray(image) != 255) & (covered == 0)
    assert ink[: boxes[0][1]].any()  # caption
    assert ink[boxes[0][1] :, : boxes[0][0]].any()  # labels


def test_text_is_what_the_font_has(artifact: Artifact, data: Dataset) -> None:
    drawing = Drawing(artifact, data)
    for sheet in [*(make() for _, make in drawing.short()), drawing.repeated(1)]:
        assert "".join([sheet.caption, *sheet.columns, *(label for label, _ in sheet.rows)]).isascii()


# Losses.


def log(tmp_path: Path, *entries: dict[str, Any] | str) -> Path:
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def points(svg: bytes) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())] for line in lines]


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_losses_fall_from_left_to_right_on_a_logarithmic_scale(tmp_path: Path) -> None:
    run = log(
        tmp_path,
        {"step": 50, "stage": "first", "rec": 1.0, "lr": 0.1},
        {"step": 100, "stage": "first", "rec": 0.1},
        {"step": 150, "stage": "second <2>", "rec": 0.01, "tight": -0.1},
        {"step": 200, "stage": "second <2>", "rec": 0.001, "tight": -0.01},
        '{"step": 250, "sta',
    )
    svg = loss_curves.losses(run)
    first, second, tight = points(svg)
    (x1, y1), (x2, y2) = first
    (x3, y3), (x4, y4) = second
    assert x2 - x1 == pytest.approx(x4 - x3, abs=0.2)
    assert [y2 - y1, y3 - y2, y4 - y3] == pytest.approx([100.0] * 3, abs=0.2)  # a third of the height each
    assert [y for _, y in tight] == pytest.approx([y2, y3], abs=0.2)
    assert {"first", "second <2>", "rec", "tight", "0.001", "1", "200", "step"} <= set(texts(svg))
    assert "lr" not in texts(svg)


def test_long_logs_make_small_files(tmp_path: Path) -> None:
    run = log(tmp_path, *({"step": 50 * i, "stage": "s", "rec": 1 / i, "imle": 2.0} for i in range(1, 5001)))
    svg = loss_curves.losses(run)
    assert all(len(line) <= 150 for line in points(svg))
    assert len(svg) < 10_000


@pytest.mark.parametrize("line", ["", '{"step": 1, "stage": "s"}', '{"step": 1, "stage": "s", "rec": NaN}', "[]"])
def test_a_log_without_losses_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no losses in it"):
        loss_curves.losses(log(tmp_path, line))
