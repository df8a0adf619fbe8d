"""Tiles: what is cut and pasted is the image, and a network that does not look too far gives no seam."""

from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.latents import FloatRow
from service.domain.tiles import Tiling

REACH = 2


def blur(image: FloatRow) -> FloatRow:
    """Looks `REACH` pixels far, and sees zeros beyond the border, as a convolution does."""
    padded = np.pad(image, [(0, 0), (REACH, REACH), (REACH, REACH)])
    height, width = image.shape[1:]
    shifts = [(i, j) for i in range(2 * REACH + 1) for j in range(2 * REACH + 1)]
    parts = [(1 + i + 3 * j) * padded[:, i : i + height, j : j + width] for i, j in shifts]
    return np.asarray(np.sum(parts, axis=0) / 1000, dtype=np.float32)


def tiled(image: FloatRow, tiling: Tiling, f: Callable[[FloatRow], FloatRow]) -> tuple[FloatRow, FloatRow]:
    """The image as it is mirrored, and what f makes of it tile by tile."""
    mirrored, canvas = tiling.mirrored(image), tiling.empty(image)
    tile = np.empty((len(image), *tiling.tile), np.float32)
    for index in range(tiling.count):
        tiling.cut(mirrored, index, tile)
        tiling.paste(f(tile), index, canvas)
    return mirrored, canvas


@st.composite
def tilings(draw: st.DrawFn, *, least_overlap: int = 0) -> tuple[FloatRow, Tiling]:
    multiple = draw(st.sampled_from([1, 2, 4]))
    overlap = draw(st.integers(least_overlap, 9))
    tile = tuple(
        multiple * draw(st.integers(-(-2 * (overlap + multiple) // multiple), 40 // multiple)) for _ in range(2)
    )
    size = draw(st.tuples(st.integers(1, 100), st.integers(1, 100)))
    image: NDArray[np.float32] = np.random.default_rng(draw(st.integers(0, 9))).random((2, *size), dtype=np.float32)
    margin = multiple * draw(st.integers(0, 5))
    return image, Tiling(size, (tile[0], tile[1]), overlap=overlap, multiple=multiple, margin=margin)


@given(tilings())
def test_tiles_put_together_are_the_image(case: tuple[FloatRow, Tiling]) -> None:
    image, tiling = case
    _, canvas = tiled(image, tiling, lambda tile: tile)
    np.testing.assert_allclose(tiling.cropped(canvas), image, atol=1e-6)


@given(tilings(least_overlap=REACH))
def test_tiles_give_what_the_whole_gives(case: tuple[FloatRow, Tiling]) -> None:
    image, tiling = case
    mirrored, canvas = tiled(image, tiling, blur)
    np.testing.assert_allclose(canvas, blur(mirrored), atol=1e-5)
    assert mirrored.shape[1] - image.shape[1] < tiling.tile[0] + 40  # twice the largest margin
    np.testing.assert_array_equal(tiling.cropped(mirrored), image)


def test_an_image_is_mirrored_beyond_every_edge() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    mirrored = Tiling((3, 4), (8, 8), overlap=2, margin=2).mirrored(image)
    np.testing.assert_array_equal(mirrored, np.pad(image, [(0, 0), (2, 3), (2, 2)], mode="symmetric"))


@given(st.tuples(st.integers(1, 16), st.integers(1, 16)), st.integers(0, 100))
def test_a_single_tile_has_no_overlap(size: tuple[int, int], overlap: int) -> None:
    image = np.random.default_rng(overlap).random((1, *size), dtype=np.float32)
    tiling = Tiling(size, (16, 16), overlap=overlap)
    mirrored, canvas = tiled(image, tiling, blur)
    assert tiling.count == 1
    np.testing.assert_array_equal(canvas, blur(mirrored))


@pytest.mark.parametrize("height", range(65, 200, 9))
def test_there_is_no_step_between_tiles_that_disagree(height: int) -> None:
    tiling, brightness = Tiling((height, 64), (64, 64), overlap=8), cycle((0.0, 1.0))
    image = np.zeros((1, height, 64), np.float32)
    _, canvas = tiled(image, tiling, lambda tile: np.full_like(tile, next(brightness)))
    assert np.abs(np.diff(canvas, axis=1)).max() <= 0.06  # of 1: over at least 16 pixels
