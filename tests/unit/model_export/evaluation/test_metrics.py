import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model_export.evaluation import metrics
from tests.helpers.tiny_training import patterns

Rows = NDArray[np.float32]


def pictures(count: int = 5, side: int = 16, channels: int = 1, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (count, channels, side, side)).astype(np.float32)


def test_frechet_is_that_of_the_matrix_root() -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6))
    b = generator.normal(size=(200, 6)) + 0.5
    first = np.cov(a, rowvar=False)
    second = np.cov(b, rowvar=False)
    root = np.trace(sqrtm(first @ second).real)
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
    )
    assert metrics.frechet(a, b) == pytest.approx(float(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_and_psnr_are_the_standard_ones(channels: int) -> None:
    a = pictures(channels=channels)
    np.testing.assert_allclose(metrics.ssim(a, a), 1.0)
    assert np.isfinite(metrics.psnr(a, a)).all()  # of identical pictures
    b = (a + 0.3 * pictures(channels=channels, seed=1)).astype(np.float32)
    for i, (ssim, psnr) in enumerate(zip(metrics.ssim(a, b), metrics.psnr(a, b), strict=True)):
        # scikit-image has no annotations.
        expected = structural_similarity(  # type: ignore[no-untyped-call]
            a[i],
            b[i],
            channel_axis=0,
            data_range=2.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        ratio = peak_signal_noise_ratio(a[i], b[i], data_range=2.0)  # type: ignore[no-untyped-call]
        assert ssim == pytest.approx(expected, abs=1e-5)
        assert psnr == pytest.approx(ratio, abs=1e-4)


def test_nearest_is_brute_force_in_units_of_rows() -> None:
    # more references than one chunk holds
    queries, references = (patterns(30, 0)[0], patterns(5000, 1)[0])
    difference = queries[:, None].astype(float) - references[None]
    expected = np.sqrt(np.square(difference).mean((2, 3))).min(1) * 2 / 255
    np.testing.assert_allclose(metrics.nearest(queries, references), expected, atol=1e-9)


def test_a_picture_is_not_its_own_neighbour() -> None:
    levels = np.array([0, 10, 12, 255], np.uint8)[:, None, None, None] * np.ones(
        (4, 1, 2, 2), np.uint8
    )
    np.testing.assert_allclose(metrics.nearest(levels, levels), np.array([10, 2, 2, 243]) * 2 / 255)
    np.testing.assert_allclose(metrics.nearest(levels, levels.copy()), 0.0)
