import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.latents import FloatRow, Grid, LatentPath, Method, NoiseSource, lerp, slerp

NOISE = NoiseSource((1, 2, 3))


def points(n: int) -> list[FloatRow]:
    return [NOISE.row(1, i) for i in range(n)]


@given(st.integers(2, 8), st.integers(2, 64), st.booleans(), st.sampled_from(["slerp", "lerp"]))
def test_frames_on_points_are_the_points(n: int, frames: int, loop: bool, method: Method) -> None:
    stops = points(n)
    path = LatentPath(frames=frames, method=method, loop=loop)
    rows, times = path.rows(stops), path.times()
    assert len(times) == frames
    assert (times[0], times[-1]) == (0.0, 1.0)
    assert times == sorted(times)
    assert rows.shape == (frames - loop, 1, 2, 3)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    stops = [*stops, stops[0]] if loop else stops
    segments = len(stops) - 1
    for i, row in enumerate(rows):
        segment, place = divmod(i * segments, frames - 1)
        if place == 0:
            assert row.tobytes() == stops[segment].tobytes()
        else:
            mix = slerp if method == "slerp" else lerp
            expected = mix(stops[segment], stops[segment + 1], times[i] * segments - segment)
            np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["slerp", "lerp"])
@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (3, 5), (16, 16)])
def test_corners_of_a_grid_are_the_points(rows: int, cols: int, method: Method) -> None:
    corners = points(4)
    grid = Grid(rows=rows, cols=cols, method=method)
    latents = grid.latents(corners)
    assert latents.shape == (rows * cols, 1, 2, 3)
    assert grid.coordinates() == [(r, c) for r in range(rows) for c in range(cols)]
    at = [0, cols - 1, (rows - 1) * cols, rows * cols - 1]
    for place, corner in zip(at, corners, strict=True):
        assert latents[place].tobytes() == corner.tobytes()


def test_a_grid_goes_along_columns_first() -> None:
    a, b, c, d = points(4)
    latents = Grid(rows=3, cols=5).latents([a, b, c, d])
    expected = slerp(slerp(a, b, 0.25), slerp(c, d, 0.25), 0.5)
    np.testing.assert_array_equal(latents[1 * 5 + 1], expected)
    bilinear = Grid(rows=3, cols=5, method="lerp").latents([a, b, c, d])[1 * 5 + 1]
    np.testing.assert_allclose(bilinear, 0.375 * a + 0.125 * b + 0.375 * c + 0.125 * d, atol=1e-6)
