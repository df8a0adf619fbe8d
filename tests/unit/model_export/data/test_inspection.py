import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.data.picture_files import Inspection, inspect_pictures

Picture = NDArray[np.uint8]


def shapes(
    count: int, side: int, background: tuple[int, ...], ink: tuple[int, ...]
) -> list[Picture]:
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
    assert (inspection.channels, inspection.ground, inspection.polarity) == (
        channels,
        ground,
        polarity,
    )
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
