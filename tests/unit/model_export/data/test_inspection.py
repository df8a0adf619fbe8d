from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_export.data.datasets import open_source
from model_export.data.picture_files import Inspection, inspect_pictures

Picture = NDArray[np.uint8]


def shapes(count: int, side: int, background: tuple[int, ...], ink: tuple[int, ...]) -> list[Picture]:
    """A block of ink in the middle of a plain background."""
    pictures = np.empty((count, side, side, len(background)), np.uint8)
    pictures[:] = background
    pictures[:, side // 4 : -side // 4, side // 4 : -side // 4] = ink
    return list(pictures)


@pytest.mark.parametrize(
    ("background", "ink", "channels", "ground", "polarity"),
    [
        ((0,), (255,), 1, "dark", "light-on-dark"),
        ((250,), (10,), 1, "light", "dark-on-light"),
        ((255, 255, 255), (200, 20, 20), 3, "light", "none"),
        ((10, 10, 60), (200, 20, 20), 3, "dark", "none"),
        ((255, 255, 255), (90, 90, 90), 1, "light", "dark-on-light"),  # grey that is stored as RGB
    ],
)
def test_colours_and_ground(
    background: tuple[int, ...], ink: tuple[int, ...], channels: int, ground: str, polarity: str
) -> None:
    inspection = found(shapes(30, 16, background, ink))
    assert (inspection.channels, inspection.ground, inspection.polarity) == (channels, ground, polarity)
    assert inspection.background == background[:channels]
    assert (inspection.count, inspection.smallest, inspection.largest) == (30, (16, 16), (16, 16))


def found(pictures: list[Picture]) -> Inspection:
    return inspect_pictures("x", len(pictures), pictures.__getitem__)


def test_pictures_of_both_grounds_and_photographs_have_no_polarity() -> None:
    inspection = found(shapes(20, 8, (0,), (255,)) + shapes(20, 8, (255,), (0,)))
    assert (inspection.ground, inspection.polarity) == ("plain", "none")
    noise = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    photographs = found(list(noise))
    assert (photographs.channels, photographs.ground, photographs.polarity) == (3, "mixed", "none")


def test_sizes_of_files_differ_and_bad_ones_are_passed_over(tmp_path: Path) -> None:
    for i, size in enumerate([(40, 30), (64, 20), (50, 50)]):
        Image.new("RGB", size, "red").save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    inspection = open_source(str(tmp_path)).inspect()
    assert (inspection.count, inspection.smallest, inspection.largest) == (4, (64, 20), (64, 20))
    assert str(inspection).startswith("4 pictures, 64×20, colour")


def test_arrays_are_looked_at_with_channels_first_and_last(tmp_path: Path) -> None:
    x = np.stack(shapes(20, 16, (255, 255, 200), (0, 0, 0)))
    np.savez(tmp_path / "last.npz", x_train=x, x_test=x[:2])
    np.savez(tmp_path / "first.npz", x_train=x.transpose(0, 3, 1, 2), x_test=x[:2].transpose(0, 3, 1, 2))
    last, first = (open_source(str(tmp_path / f"{name}.npz")).inspect() for name in ("last", "first"))
    assert first == last
    assert (first.count, first.channels, first.background) == (22, 3, (255, 255, 200))
