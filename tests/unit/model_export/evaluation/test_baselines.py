import numpy as np
import pytest
from scipy.ndimage import zoom

from model_export.data.corruptions import CORRUPTIONS, Corruption, low_resolution, noise
from model_export.evaluation.classifier import sample_budget
from model_export.evaluation.metrics import psnr
from model_export.evaluation.restoration import BASELINES, bicubic, non_local_means, tune
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
    _, restore = tune(BASELINES[corruption][method], corrupted, clean)
    restored = restore(corrupted)
    assert restored.shape == clean.shape
    assert restored.dtype == np.float32
    assert np.array_equal(corrupted, before)
    assert psnr(restored, clean).mean() > psnr(corrupted, clean).mean() + 2.0


def test_the_setting_that_restores_best_is_taken() -> None:
    def times(k: float) -> Corruption:
        return lambda x: x * np.float32(k)

    grid = {str(k): times(k) for k in (0.5, 1.0, 2.0)}
    assert tune(grid, SMOOTH, SMOOTH * np.float32(0.9))[0] == "1.0"
    assert tune({"0.5": times(0.5)}, SMOOTH, SMOOTH)[0] == "0.5"


def test_the_grid_of_non_local_means() -> None:
    grid = non_local_means(0.5)
    assert "h 0.8 σ, σ given, Gaussian patches" in grid  # as in scikit-image's example
    corrupted = noise(0.5)(SMOOTH[:2])
    assert len({restore(corrupted).tobytes() for restore in grid.values()}) == len(grid) == 28


def test_bicubic_enlarges_the_averages() -> None:
    (restore,) = bicubic(4).values()
    flat = np.full((1, 3, 8, 12), 0.25, np.float32)
    np.testing.assert_allclose(restore(low_resolution(4)(flat)), flat, atol=1e-6)
    restored = restore(low_resolution(4)(SMOOTH))
    small = SMOOTH.reshape(len(SMOOTH), 1, 4, 4, 4, 4).mean((3, 5))
    cubic = zoom(small[0, 0], 4, order=3, mode="nearest", grid_mode=True)
    assert np.abs(restored[0, 0] - cubic).max() < 0.2


def test_large_pictures_are_measured_in_smaller_numbers() -> None:
    assert sample_budget(1000, (1, 28, 28)) == sample_budget(1000, (1, 8, 8)) == 1000
    assert sample_budget(1000, (3, 64, 64)) == 63
    assert sample_budget(1000, (3, 512, 512)) == 62
