import numpy as np
import pytest

from service.artifact.pixels import to_levels, to_rows

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)


@pytest.mark.parametrize(("lo", "hi"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.7)])
def test_every_level_survives_the_round_trip(lo: float, hi: float) -> None:
    rows = to_rows(LEVELS, lo, hi)
    assert rows.dtype == np.float32
    assert rows.shape == LEVELS.shape
    assert (float(rows.min()), float(rows.max())) == pytest.approx((lo, hi))
    assert np.array_equal(to_levels(rows, lo, hi), LEVELS)


def test_values_beyond_the_range_are_clipped_and_ties_go_to_even() -> None:
    rows = np.array([-3.0, -1.0, 0.0, 1.0, 3.0], np.float32)
    assert to_levels(rows).tolist() == [0, 0, 128, 255, 255]  # 0 lies between 127 and 128
