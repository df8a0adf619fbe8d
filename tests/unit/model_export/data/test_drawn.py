"""Drawings, faces, pages and their damages, and the data sets of them."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ImageFont
from torch import Tensor

from model_export.data import avatars, damages, known_sets, pages, pens, scans
from model_export.data.avatars import BACKGROUNDS, draw_avatars
from model_export.data.datasets import Attributes, Dataset, open_source
from model_export.data.drawings import random_drawings
from model_export.data.pens import draw_pens
from model_export.errors import UserError
from tests.unit.model_export.conftest import seeded

GROUNDS = [(1, (-1.0,)), (1, (0.9,)), (3, (-1.0,)), (3, (0.6, -0.2, 1.0))]
# of the pens
COLOURS = torch.rand((4, 3, 28, 28), generator=seeded(0)) * 2 - 1


def sketched(pictures: Tensor, background: tuple[float, ...], seed: int = 0) -> Tensor:
    draw = random_drawings(COLOURS[:, : pictures.shape[1]], background, 5)
    return draw(pictures, seeded(seed))


@pytest.mark.parametrize(("channels", "background"), GROUNDS)
def test_rows_of_training_stay_in_range_and_on_their_background(
    channels: int, background: tuple[float, ...]
) -> None:
    ground = torch.tensor(background)[None, :, None, None]
    pictures = ground.expand(20, channels, 28, 28).clone()
    pictures[:, :, 10:18, 13:15] = 0.5
    rows = sketched(pictures, background)
    assert rows.shape == pictures.shape
    assert float(rows.abs().max()) <= 1.0 + 1e-5
    assert float(((rows - ground).abs().amax(1) < 1e-3).float().mean()) > 0.5
    assert len(torch.unique(rows, dim=0)) == 20
    assert torch.equal(rows, sketched(pictures, background))
    assert not torch.equal(rows, sketched(pictures, background, seed=1))


SMILES = (0, 22)
SAD = (3, 13)


@pytest.fixture(scope="module")
def faces() -> Dataset:
    g = np.random.default_rng(0)
    values = {
        "mouth": [*SMILES, *SAD, 8, 14],
        "eyes": [0, 18, 20],
        "hair": [0, 40, 44, 2],
        "glasses": [0, 2],
        "brows": [0, 4],
        "skin": [1, 4],
    }
    attributes = Attributes(
        tuple(values),
        np.stack([g.choice(known, 400) for known in values.values()], 1),
        np.empty((0, 6), np.int64),
    )
    papers = torch.tensor(
        [[int(each[i : i + 2], 16) for i in (0, 2, 4)] for each in BACKGROUNDS], dtype=torch.uint8
    )
    pictures = papers[g.integers(2, size=400)][:, :, None, None].expand(-1, -1, 32, 32)
    return Dataset(
        "faces", "", "", pictures, pictures[:1], attributes=attributes, known="avatars64"
    )


@pytest.fixture(scope="module")
def drawn(faces: Dataset) -> tuple[Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pens, "_COUNT", 70)
        return draw_pens(faces)


def test_the_pictures_that_fit_a_drawing_show_what_it_shows(
    faces: Dataset, drawn: tuple[Tensor, Tensor]
) -> None:
    rows, fitting = drawn
    assert faces.attributes is not None
    mouths, eyes, *_ = torch.from_numpy(faces.attributes.train)[fitting].unbind(2)
    assert all(
        any(set(row.tolist()) <= set(group) for group in (SMILES, SAD, (8,), (14,)))
        for row in mouths
    )
    assert sum(set(row.tolist()) <= set(SAD) for row in mouths) >= 15  # as many as smiles
    assert (eyes == eyes[:, :1]).all()
    for row, fits in zip(rows, faces.train[fitting], strict=True):
        corner = row[:, -1, 0]
        if (corner == faces.train[:, :, 0, 0]).all(1).any():
            assert (fits[:, :, 0, 0] == corner).all()


COUNT = 30
SIZE = 16


@pytest.fixture(scope="module")
def adventurers() -> dict[str, NDArray[Any]]:
    return draw_avatars(COUNT, size=SIZE)


def test_attributes_describe_the_picture(adventurers: dict[str, NDArray[Any]]) -> None:
    names = list(adventurers["attributes"])
    skins = adventurers["values_skin"][adventurers["attributes_train"][:, names.index("skin")]]
    for picture, skin in zip(adventurers["x_train"], skins, strict=True):
        colour = np.array([int(skin[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(picture.astype(int) - colour).max(2).min() <= 8
    background = [int(avatars.BACKGROUNDS[0][i : i + 2], 16) for i in (0, 2, 4)]
    assert (adventurers["x_train"][:, 0, 0] == background).all(1).any()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    avatars._attribute_values.cache_clear()
    avatars._definition.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        avatars, "find_spec", lambda name: None if name == "dicebear" else find_spec(name)
    )
    with pytest.raises(UserError, match="dicebear-core"):
        draw_avatars(20)
    avatars._definition.cache_clear()


# Of families that matplotlib contains, so that tests need no fonts of the machine.
FONTS = tuple(sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVuS*.ttf")))


@pytest.fixture(autouse=True)
def _fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "fonts", lambda: FONTS)
    monkeypatch.setattr(damages, "fonts", lambda: FONTS)
    monkeypatch.setattr(pages, "_foreign", lambda: [((0x3B1, 0x3CA, 0x20, 0x21), FONTS)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})


def page(seed: int, side: int = 240) -> tuple[np.ndarray, float]:
    return pages.draw_page(np.random.default_rng(seed), side)


@pytest.fixture
def printed() -> tuple[np.ndarray, float]:
    """The first page with ink."""
    return next(each for each in map(page, range(20)) if (each[0] < 64).mean() > 0.05)


@pytest.mark.parametrize("damage", damages.SHARES, ids=lambda damage: damage.__name__)
def test_a_damage_changes_a_page_but_not_its_size(
    damage: damages.Damage, printed: tuple[np.ndarray, float]
) -> None:
    clean, em = printed
    image = clean.astype(np.float32) / 255
    levels = [
        pages.to_levels(damage(np.random.default_rng(seed), image, 0.9, em)) for seed in range(4)
    ]
    assert all(each.shape == clean.shape for each in levels)
    assert np.mean([(each != clean).mean() for each in levels]) > 0.001
    np.testing.assert_array_equal(pages.to_levels(image), clean)  # the input is unchanged


@pytest.mark.parametrize(
    ("damage", "stays"), [(damages.light, False), (damages.blur, True), (damages.low, True)]
)
def test_f_shall_undo_all_damages_but_those_of_shapes(
    damage: damages.Damage,
    stays: bool,
    printed: tuple[np.ndarray, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(damages, "SHARES", {damage: 1.0})
    clean = printed[0].astype(np.float32) / 255
    damaged, target = damages.damaged(np.random.default_rng(1), clean, printed[1])
    np.testing.assert_array_equal(target, damaged if stays else clean)
    assert np.abs(damaged - clean).max() > 0.1


def test_faint_print_has_few_other_damages(
    printed: tuple[np.ndarray, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = printed[0].astype(np.float32) / 255
    monkeypatch.setattr(damages, "SHARES", dict.fromkeys(damages.SHARES, 1.0))
    damaged, _ = damages.damaged(np.random.default_rng(1), clean, printed[1])
    ink = printed[0] < 32
    assert 0.05 < damaged[~ink].mean() - damaged[ink].mean() < 0.4


def test_print_on_white_paper_becomes_black_and_pictures_stay() -> None:
    grey = np.full((64, 64), 255, np.uint8)
    grey[20:26, 8:56] = 40  # ink
    grey[40:, 8:56] = 40  # a picture
    toned = scans.toned(grey)
    assert toned[20:26, 8:56].max() < 20
    np.testing.assert_array_equal(toned[48:, 16:48], grey[48:, 16:48])
    assert (toned[:12] == 255).all()


def test_the_families_for_measurements_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # which draws letters of every font of the machine
    monkeypatch.setattr(pages, "_draws", lambda face, letters: True)
    for held_out in (False, True):
        families = {
            str(ImageFont.truetype(file, 12).getname()[0])
            for file in pages.font_files(held_out=held_out)
        }
        assert all(family.startswith(pages.HELD_OUT_FONTS) == held_out for family in families)
    assert any("DejaVuSerif" in file.name for file in pages.font_files(held_out=False))


def test_the_set_has_pairs_of_which_some_are_equal() -> None:
    arrays = scans.draw_scans(25, side=48)
    train = arrays["x_train"]
    damaged = arrays["damaged_train"]
    assert train.shape == damaged.shape == (len(train), 48, 48)
    assert len(arrays["x_test"]) > 0
    equal = (train == damaged).all((1, 2)).mean()
    assert 0.05 < equal < 0.5
    np.testing.assert_array_equal(scans.draw_scans(25, side=48)["damaged_train"], damaged)


def test_the_set_is_drawn_once_and_again_by_another_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = []

    def draw() -> dict[str, np.ndarray]:
        drawn.append(1)
        return {
            name: np.full((4, 16, 16), i, np.uint8)
            for i, name in enumerate(("x_train", "x_test", "damaged_train"))
        }

    monkeypatch.setattr(known_sets, "_CACHE", str(tmp_path))
    monkeypatch.setattr(scans, "draw_scans", draw)
    data = [open_source("scans").load(size=16, channels=1) for _ in range(2)]
    assert (len(drawn), data[0].sha256, data[0].known) == (1, data[1].sha256, "scans")
    assert data[0].damaged is not None
    assert set(data[0].damaged.flatten().tolist()) == {2}
    (tmp_path / "changed.py").write_text("")
    monkeypatch.setattr(damages, "__file__", str(tmp_path / "changed.py"))
    open_source("scans").load(size=16, channels=1)
    assert len(drawn) == 2
