import pytest
import torch
from torch import Tensor

from model_export.data import drawings
from model_export.data.drawings import (
    RandomDrawings,
)

BACKGROUNDS = [(1, (-1.0,)), (1, (0.9,)), (3, (-1.0,)), (3, (0.6, -0.2, 1.0))]
# of the pens
COLOURS = torch.rand((4, 3, 28, 28), generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "_BANK", 20)


def drawn(pictures: Tensor, background: tuple[float, ...], seed: int = 0) -> Tensor:
    source = RandomDrawings(COLOURS[:, : pictures.shape[1]], background, 5)
    return source.draw(pictures, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("channels", "background"), BACKGROUNDS)
def test_rows_of_training_stay_in_range_and_on_their_background(
    channels: int, background: tuple[float, ...]
) -> None:
    ground = torch.tensor(background)[None, :, None, None]
    pictures = ground.expand(20, channels, 28, 28).clone()
    pictures[:, :, 10:18, 13:15] = 0.5
    rows = drawn(pictures, background)
    assert rows.shape == pictures.shape
    assert float(rows.abs().max()) <= 1.0 + 1e-5
    assert float(((rows - ground).abs().amax(1) < 1e-3).float().mean()) > 0.5
    assert len(torch.unique(rows, dim=0)) == 20
    assert torch.equal(rows, drawn(pictures, background))
    assert not torch.equal(rows, drawn(pictures, background, seed=1))
