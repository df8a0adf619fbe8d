from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from model_export.data import corruptions
from model_export.data.corruptions import CorruptionName
from tests.unit.model_export.conftest import seeded

BATCH = 60
SIDE = 28
SHAPE = (3, SIDE, SIDE)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand((BATCH, *SHAPE), generator=seeded(1)) * 2 - 1


def uniform(count: int = BATCH) -> Tensor:
    return torch.rand((count, 3), generator=seeded(2))


def test_blur_is_a_gaussian(pictures: Tensor) -> None:
    draws = uniform()
    blurred = corruptions.RANDOM["blur"](pictures, draws)
    for row, picture, u in zip(blurred, pictures, draws[:, 0].tolist(), strict=True):
        expected = gaussian_filter(
            picture.numpy(), 0.3 + 1.7 * u, axes=(1, 2), mode="nearest", radius=6
        )
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-5)


def test_low_resolution_repeats_averages(pictures: Tensor) -> None:
    strengths = torch.tensor([0.0, 0.5, 0.99])[:, None].expand(3, 3)
    halved, _, quartered = corruptions.RANDOM["low_resolution"](pictures[:3], strengths)
    for factor, picture, coarse in ((2, pictures[0], halved), (4, pictures[2], quartered)):
        squares = picture.reshape(3, SIDE // factor, factor, SIDE // factor, factor).mean((2, 4))
        torch.testing.assert_close(
            coarse, squares.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        )
    assert torch.equal(corruptions.RANDOM["low_resolution"](pictures[:1], strengths[:1])[0], halved)


def test_a_hole_is_a_grey_square_anywhere(pictures: Tensor) -> None:
    light = pictures.abs() + 0.1
    holes = corruptions.RANDOM["hole"](light, uniform()) == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    for hole in holes[:, 0]:
        side = int(hole.any(1).sum())
        assert int(hole.any(0).sum()) == side
        assert int(hole.sum()) == side**2
        assert round(0.2 * SIDE) <= side <= round(0.5 * SIDE)


def test_a_sketch_divides_by_the_surroundings(pictures: Tensor) -> None:
    draws = uniform(1)
    sigma = (1.75 + 3.5 * float(draws[0, 0])) * SIDE / 64
    light = pictures[:1].mean(1).numpy() + 1.0
    around = gaussian_filter(light, sigma, axes=(1, 2), mode="nearest", radius=7)
    expected = np.clip(light / (around + 1e-10) - 1.0, -1.0, 1.0)
    lines = corruptions.RANDOM["sketch"](pictures[:1], draws)
    for channel in range(3):
        np.testing.assert_allclose(lines[:, channel].numpy(), expected, atol=1e-5)


def test_every_row_gets_one_corruption_and_the_input_is_unchanged(pictures: Tensor) -> None:
    names = get_args(CorruptionName)
    before = pictures.clone()
    corrupted, kinds = corruptions.corrupt(pictures, names, seeded(3))
    assert torch.equal(pictures, before)
    assert sorted(set(kinds.tolist())) == list(range(len(names)))
    # Runs continue bit for bit only if the draws keep their order.
    generator = seeded(3)
    strength = torch.rand((BATCH, 1), generator=generator)
    normal = torch.randn(pictures.shape, generator=generator)
    drawn = torch.cat([strength, torch.rand((BATCH, 2), generator=generator)], 1)
    levels = (corrupted + 1) * 127.5
    rounded = (levels - levels.round()).abs().amax((1, 2, 3)) < 1e-3
    assert 0.3 < rounded.float().mean() < 0.8
    for row in range(BATCH):
        x = pictures[row : row + 1]
        name = names[int(kinds[row])]
        expected = (
            x + 1.2 * strength[row] * normal[row]
            if name == "noise"
            else corruptions.RANDOM[name](x, drawn[row : row + 1])
        )
        # Half of the rows are rounded to 8 bits.
        bound = (-1, 1) if rounded[row] else (-9, 9)
        torch.testing.assert_close(
            corrupted[row : row + 1], expected.clamp(*bound), atol=0.5 / 127.5 + 1e-6, rtol=0
        )
