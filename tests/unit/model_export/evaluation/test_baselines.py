import numpy as np
import pytest
from scipy.ndimage import zoom

from model_export.data.corruptions import CORRUPTIONS, hole, hole_mask, low_resolution, noise
from model_export.evaluation.restoration import BASELINES, GridPoint, bicubic, biharmonic, non_local_means, tune
from model_export.evaluation.classifier import sample_budget
from model_export.evaluation.metrics import psnr
from service.domain.latents import FloatRows

GRID = np.linspace(0.0, 3.0, 16)
SMOOTH = np.stack([np.sin(GRID[:, None] + i) * np.cos(GRID[None]) for i in range(6)]).astype(np.float32)[:, None] * 0.9
COLOUR = np.concatenate([SMOOTH, -SMOOTH, SMOOTH**2], axis=1)


def test_every_corruption_has_its_methods_or_none() -> None:
    assert set(BASELINES) == set(CORRUPTIONS)
    assert all(grid for methods in BASELINES.values() for grid in methods.values())


@pytest.mark.parametrize("clean", [SMOOTH, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("corruption", "method"), [(name, method) for name, methods in BASELINES.items() for method in methods]
)
def test_a_method_mends_smooth_pictures(clean: FloatRows, corruption: str, method: str) -> None:
    corrupted = CORRUPTIONS[corruption](clean)
    before = corrupted.copy()
    point = tune(BASELINES[corruption][method], corrupted, clean)
    restored = point.restore(corrupted)
    assert restored.shape == clean.shape
    assert restored.dtype == np.float32
    assert np.array_equal(corrupted, before)
    assert psnr(restored, clean).mean() > psnr(corrupted, clean).mean() + 2.0


def test_the_grid_point_that_restores_best_is_taken() -> None:
    def times(k: float) -> GridPoint:
        return GridPoint(f"{k}", lambda x: x * np.float32(k))

    grid = [times(k) for k in (0.5, 1.0, 2.0)]
    assert tune(grid, SMOOTH, SMOOTH * np.float32(0.9)).text == "1.0"
    assert tune(grid[:1], SMOOTH, SMOOTH).text == "0.5"


def test_the_grid_of_non_local_means() -> None:
    texts = [point.text for point in non_local_means(0.5)]
    assert len(set(texts)) == 28
    assert "h 0.8 σ, σ given, Gaussian patches" in texts  # as in scikit-image's example
    corrupted = noise(0.5)(SMOOTH)
    results = [point.restore(corrupted) for point in non_local_means(0.5)]
    assert len({result.tobytes() for result in results}) == 28


def test_bicubic_enlarges_the_averages() -> None:
    (point,) = bicubic(4)
    flat = np.full((1, 3, 8, 12), 0.25, np.float32)
    np.testing.assert_allclose(point.restore(low_resolution(4)(flat)), flat, atol=1e-6)
    restored = point.restore(low_resolution(4)(SMOOTH))
    small = SMOOTH.reshape(len(SMOOTH), 1, 4, 4, 4, 4).mean((3, 5))
    cubic = zoom(small[0, 0], 4, order=3, mode="nearest", grid_mode=True)
    assert np.abs(restored[0, 0] - cubic).max() < 0.2


def test_the_hole_alone_is_filled() -> None:
    (point,) = biharmonic(0.4)
    corrupted, mask = hole(0.4)(SMOOTH), hole_mask(0.4, SMOOTH.shape)
    restored = point.restore(corrupted)
    assert mask.sum() == 36
    np.testing.assert_allclose(restored[:, :, ~mask], SMOOTH[:, :, ~mask], atol=1e-6)
    assert np.abs(restored - SMOOTH)[:, :, mask].mean() < 0.05


def test_large_pictures_are_measured_in_smaller_numbers() -> None:
    assert sample_budget(1000, (1, 28, 28)) == sample_budget(1000, (1, 8, 8)) == 1000
    assert sample_budget(1000, (3, 64, 64)) == 63
    assert sample_budget(1000, (3, 512, 512)) == 62
