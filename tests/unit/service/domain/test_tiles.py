"""Tiles: what is cut and pasted is the image, and a network that does not look too far gives no
seam.
"""

import tracemalloc
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

Case = tuple[FloatRow, Tiling, FloatRow, int]


def blur(image: FloatRow) -> FloatRow:
    """Looks `REACH` pixels far, and sees zeros beyond the border, as a convolution does."""
    padded = np.pad(image, [(0, 0), (REACH, REACH), (REACH, REACH)])
    height, width = image.shape[1:]
    shifts = [(i, j) for i in range(2 * REACH + 1) for j in range(2 * REACH + 1)]
    parts = [(1 + i + 3 * j) * padded[:, i : i + height, j : j + width] for i, j in shifts]
    return np.asarray(np.sum(parts, axis=0) / 1000, dtype=np.float32)


def mirrored(image: FloatRow, tiling: Tiling, multiple: int = 1, margin: int = 0) -> FloatRow:
    """The image as its tiles see it: mirrored beyond its edges."""
    beyond = [(0, 0)]
    for side, tile in zip(tiling.size, tiling.tile, strict=True):
        length = max(tile, -(-(side + 2 * margin) // multiple) * multiple)
        beyond.append((margin, length - margin - side))
    return np.pad(image, beyond, mode="symmetric")


def tiled(image: FloatRow, tiling: Tiling, f: Callable[[FloatRow], FloatRow]) -> FloatRow:
    """What f makes of an image tile by tile."""
    canvas = np.zeros_like(image)
    tile = np.empty((len(image), *tiling.tile), np.float32)
    for index in range(tiling.count):
        tiling.cut(image, index, tile)
        tiling.paste(f(tile), index, canvas)
    return canvas


@st.composite
def tilings(draw: st.DrawFn, *, least_overlap: int = 0) -> Case:
    """An image, its tiling, the image as its tiles see it, and the margin."""
    multiple = draw(st.sampled_from([1, 2, 4]))
    overlap = draw(st.integers(least_overlap, 9))
    tile = tuple(
        multiple * draw(st.integers(-(-2 * (overlap + multiple) // multiple), 40 // multiple))
        for _ in range(2)
    )
    size = draw(st.tuples(st.integers(1, 100), st.integers(1, 100)))
    image: NDArray[np.float32] = np.random.default_rng(draw(st.integers(0, 9))).random(
        (2, *size), dtype=np.float32
    )
    margin = multiple * draw(st.integers(0, 5))
    tiling = Tiling(size, (tile[0], tile[1]), overlap=overlap, multiple=multiple, margin=margin)
    return image, tiling, mirrored(image, tiling, multiple, margin), margin


@given(tilings())
def test_tiles_put_together_are_the_image(case: Case) -> None:
    image, tiling, *_ = case
    np.testing.assert_allclose(tiled(image, tiling, lambda tile: tile), image, atol=1e-6)


@given(tilings(least_overlap=REACH))
def test_tiles_give_what_the_whole_gives(case: Case) -> None:
    image, tiling, whole, margin = case
    blurred = blur(whole)
    height, width = tiling.size
    expected = blurred[:, margin : margin + height, margin : margin + width]
    np.testing.assert_allclose(tiled(image, tiling, blur), expected, atol=1e-5)


@given(st.tuples(st.integers(1, 16), st.integers(1, 16)), st.integers(0, 100))
def test_a_single_tile_has_no_overlap(size: tuple[int, int], overlap: int) -> None:
    image = np.random.default_rng(overlap).random((1, *size), dtype=np.float32)
    tiling = Tiling(size, (16, 16), overlap=overlap)
    assert tiling.count == 1
    expected = blur(mirrored(image, tiling))[:, : size[0], : size[1]]
    np.testing.assert_array_equal(tiled(image, tiling, blur), expected)


@pytest.mark.parametrize("height", range(65, 200, 9))
def test_there_is_no_step_between_tiles_that_disagree(height: int) -> None:
    tiling = Tiling((height, 64), (64, 64), overlap=8)
    brightness = cycle((0.0, 1.0))
    image = np.zeros((1, height, 64), np.float32)
    made = tiled(image, tiling, lambda tile: np.full_like(tile, next(brightness)))
    assert np.abs(np.diff(made, axis=1)).max() <= 0.06  # of 1: over at least 16 pixels


def test_a_plan_of_the_largest_image_costs_no_memory() -> None:
    tracemalloc.start()
    tilings = [Tiling((side, 16_384), (28, 28), overlap=9) for side in range(16_000, 16_100)]
    assert min(tiling.count for tiling in tilings) > 1_000_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 17
    tracemalloc.stop()
