import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.latents import (
    MAX_SEED,
    STREAM,
    FloatRow,
    NoiseSource,
    lerp,
    slerp,
    weighted_sum,
)

# The stream is part of every model: published seeds must give the same pictures for ever.
GOLDEN = {
    (0, 0): [0.059911035001277924, 0.015559634193778038, -1.1644384860992432, -0.13264712691307068],
    (7, 0): [-0.2933390140533447, 1.703830599784851, 1.5391918420791626, 0.6367538571357727],
    (7, 3): [-1.4470674991607666, -0.9134206771850586, -0.5155606865882874, 1.8603298664093018],
    (3, 7): [-0.13343952596187592, 0.2882997989654541, -1.0463484525680542, 1.6295819282531738],
    (MAX_SEED, MAX_SEED): [
        0.8686762452125549,
        -0.7511780858039856,
        -1.4504733085632324,
        0.8915141224861145,
    ],
}


@pytest.mark.parametrize(("seed", "index"), GOLDEN)
def test_golden_values_of_the_stream(seed: int, index: int) -> None:
    row = NoiseSource((1, 2, 2)).rows(seed, index, 1)[0]
    assert row.dtype == np.float32
    assert row.ravel().tolist() == GOLDEN[seed, index]
    assert STREAM == "philox4x64-10(key=(seed, index)) / numpy standard_normal(float32)"


SHAPE = (3, 4, 5)


@given(st.integers(0, MAX_SEED), st.integers(0, MAX_SEED - 3), st.sampled_from([0.0, 0.25, 1.0]))
def test_a_row_depends_on_seed_and_index_alone(seed: int, offset: int, scale: float) -> None:
    source = NoiseSource(SHAPE)
    rows = source.rows(seed, offset, 3, scale)
    assert rows.shape == (3, *SHAPE)
    assert rows.flags.c_contiguous
    for i in range(3):
        assert rows[i].tobytes() == (source.rows(seed, offset + i, 1) * np.float32(scale)).tobytes()


def row(*values: float) -> FloatRow:
    return np.array(values, np.float32).reshape(1, 1, -1)


A = row(3, 0, 0)
B = row(0, 4, 0)


@pytest.mark.parametrize("mix", [lerp, slerp])
def test_ends_are_the_points_themselves(
    mix: Callable[[FloatRow, FloatRow, float], FloatRow],
) -> None:
    assert all(mix(A, B, t) is A for t in (-1.0, 0.0))
    assert all(mix(A, B, t) is B for t in (1.0, 2.0))
    np.testing.assert_array_equal(lerp(A, B, 0.25), row(2.25, 1, 0))
    assert mix(A, B, 0.25).dtype == np.float32
    big = row(3e38, 0)
    assert np.isfinite(mix(big, row(0, 3e38), 0.5)).all()
    assert np.isfinite(mix(big, -big, 0.3)).all()


@pytest.mark.parametrize("angle", [2e-4, 1.0, math.pi / 2, math.pi - 2e-4])
def test_slerp_is_an_arc_of_the_raw_vectors(angle: float) -> None:
    """… from a ten thousandth of a radian on."""
    for t in (0.25, 0.5):
        found = slerp(row(1, 0), row(math.cos(angle), math.sin(angle)), t)
        np.testing.assert_allclose(found, row(math.cos(t * angle), math.sin(t * angle)), atol=1e-3)
    half = math.sin(math.pi / 4)
    np.testing.assert_allclose(slerp(A, B, 0.5), row(3 * half, 4 * half, 0), rtol=1e-6)


# The last two are within 1e-4 rad: 3.3e-5
@pytest.mark.parametrize(
    "other", [A, A * np.float32(2), -A, row(0, 0, 0), A + row(0, 0, 1e-4), -A + row(0, 0, 1e-4)]
)
def test_without_an_arc_slerp_is_lerp(other: FloatRow) -> None:
    for t in (0.25, 0.5, 0.9):
        np.testing.assert_array_equal(slerp(A, other, t), lerp(A, other, t))
        np.testing.assert_array_equal(slerp(other, A, t), lerp(other, A, t))


@pytest.mark.parametrize("weight", [1e-99, 1e-101, 2e-237, 5e-324])
def test_a_sum_whose_square_vanishes_still_has_a_direction(weight: float) -> None:
    np.testing.assert_allclose(weighted_sum([row(3, 4, 0)], [weight], 10.0), row(6, 8, 0), rtol=0.2)
    np.testing.assert_array_equal(weighted_sum([row(3, 4, 0)], [weight], None), row(0, 0, 0))
    # float32 would lose the small one
    large = row(2.0**24, 0, 0)
    small = row(1, 0, 0)
    np.testing.assert_array_equal(
        weighted_sum([large, small, large], [1.0, 1.0, -1.0], None), small
    )
