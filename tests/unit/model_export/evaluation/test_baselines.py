import numpy as np
import pytest

from model_export.data.corruptions import CORRUPTIONS, Corruption
from model_export.evaluation.metrics import psnr
from model_export.evaluation.restoration import BASELINES, tune
from service.domain.latents import FloatRows

GRID = np.linspace(0.0, 3.0, 16)
SMOOTH = (
    np.stack([np.sin(GRID[:, None] + i) * np.cos(GRID[None]) for i in range(6)]).astype(np.float32)[
        :, None
    ]
    * 0.9
)
COLOUR = np.concatenate([SMOOTH, -SMOOTH, SMOOTH**2], axis=1)


@pytest.mark.parametrize("clean", [SMOOTH, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("corruption", "method"),
    [(name, method) for name, methods in BASELINES.items() for method in methods],
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
