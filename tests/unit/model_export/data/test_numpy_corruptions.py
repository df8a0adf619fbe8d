import numpy as np
import pytest

from model_export.data.numpy_corruptions import DEGRADATIONS, Degradation, blur, clipped, hole, low_resolution, noise
from model_export.data.pixels import to_levels, to_rows
from model_export.evaluation.metrics import psnr
from tests.helpers.tiny_training import patterns

X = to_rows(patterns(40, 0)[0][:, None])


@pytest.mark.parametrize("degrade", DEGRADATIONS.values(), ids=list(DEGRADATIONS))
def test_a_degradation_spoils_alike_each_time_and_leaves_its_input(degrade: Degradation) -> None:
    x = X.copy()
    spoiled = degrade(x)
    assert spoiled.shape == X.shape
    assert spoiled.dtype == np.float32
    assert np.array_equal(x, X)
    assert np.array_equal(degrade(x), spoiled)
    np.testing.assert_allclose(degrade(x[:5]), spoiled[:5], atol=1e-6)  # a picture's own, not its batch's
    assert psnr(spoiled, X).mean() < 40


def test_noise_has_its_sigma_and_differs_between_pictures() -> None:
    n = noise(0.8)(X) - X
    assert abs(float(n.std()) - 0.8) < 0.03
    assert not np.array_equal(n[0], n[1])


def test_clipped_noise_fits_a_picture_file() -> None:
    spoiled = clipped(noise(0.8))(X)
    np.testing.assert_allclose(to_rows(to_levels(spoiled)), spoiled)
    assert np.abs(spoiled).max() == 1.0


def test_blur_keeps_the_mean_of_flat_pictures_and_lowers_contrast() -> None:
    np.testing.assert_allclose(blur(1.5)(np.full((1, 1, 8, 8), 0.5, np.float32)), 0.5, atol=1e-6)
    assert blur(3.0)(X).std() < X.std()


def test_low_resolution_is_averages_repeated() -> None:
    spoiled = low_resolution(4)(X)
    averages = np.broadcast_to(X[:, :, :4, :4].mean((2, 3), keepdims=True), (len(X), 1, 4, 4))
    np.testing.assert_allclose(spoiled[:, :, :4, :4], averages, atol=1e-6)
    assert low_resolution(4)(np.zeros((1, 3, 11, 9), np.float32)).shape == (1, 3, 11, 9)


def test_a_hole_is_centred() -> None:
    spoiled = hole(0.5)(np.ones((1, 1, 8, 8), np.float32))
    assert (spoiled[0, 0, 2:6, 2:6] == 0).all()
    assert spoiled.sum() == 64 - 16
