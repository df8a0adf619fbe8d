"""Pages and their damages, and the data set of both."""

import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import ImageFont

from model_export.data import damages, known_sets, pages, scans
from model_export.data.datasets import load_dataset
from model_export.errors import UserError

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


def test_pages_differ_and_are_functions_of_the_seed() -> None:
    drawn = [page(seed)[0] for seed in range(12)]
    assert all(each.shape == (240, 240) and each.dtype == np.uint8 for each in drawn)
    assert np.mean([(each > 250).mean() for each in drawn]) > 0.4
    assert sum(each.min() < 128 for each in drawn) > 8  # a few show margins only
    assert len({each.tobytes() for each in drawn}) > 8
    np.testing.assert_array_equal(drawn[3], page(3)[0])


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


def test_damages_on_one_another_leave_a_page_readable(printed: tuple[np.ndarray, float]) -> None:
    clean, em = printed
    for seed in range(5):
        for image in damages.damaged(
            np.random.default_rng(seed), clean.astype(np.float32) / 255, em
        ):
            levels = pages.to_levels(image)
            assert levels[clean > 240].mean() > levels[clean < 64].mean() + 20


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


def test_photographs_are_made_in_every_size() -> None:
    for seed in range(8):
        picture = pages.photograph(np.random.default_rng(seed), 90, 50)
        assert picture.size == (90, 50)
        assert np.asarray(picture).std() > 2


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
    data = [load_dataset("scans", size=16, channels=1) for _ in range(2)]
    assert (len(drawn), data[0].sha256, data[0].known) == (1, data[1].sha256, "scans")
    assert data[0].damaged is not None
    assert set(data[0].damaged.flatten().tolist()) == {2}
    (tmp_path / "changed.py").write_text("")
    monkeypatch.setattr(damages, "__file__", str(tmp_path / "changed.py"))
    load_dataset("scans", size=16, channels=1)
    assert len(drawn) == 2


def test_too_few_fonts_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(pages, "font_files", lambda *, held_out, letters="": FONTS[:2])
    pages.fonts.cache_clear()
    with pytest.raises(UserError, match="2 fonts"):
        page(0)
    pages.fonts.cache_clear()


def test_a_scan_in_one_bit_has_two_levels(printed: tuple[np.ndarray, float]) -> None:
    clean, em = printed
    out = damages.one_bit(np.random.default_rng(0), clean.astype(np.float32) / 255, 0.3, em)
    assert set(np.unique(out)) == {0.0, 1.0}
