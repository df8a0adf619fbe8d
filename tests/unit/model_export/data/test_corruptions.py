from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from model_export.data import corruptions
from model_export.data.corruptions import CORRUPTIONS, Corruption, CorruptionName, RandomCorruptions
from model_export.evaluation.metrics import psnr
from service.artifact.pixels import to_levels, to_rows
from tests.helpers.tiny_training import patterns

BATCH, SIDE = 60, 28
SHAPE = (3, SIDE, SIDE)
GREY = to_rows(patterns(40, 0)[0][:, None])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_corruptions(*names: CorruptionName, eight_bit: float = 0.0) -> RandomCorruptions:
    return RandomCorruptions(names=names or get_args(CorruptionName), eight_bit=eight_bit)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand((BATCH, *SHAPE), generator=seeded(1)) * 2 - 1


def uniform(count: int = BATCH) -> Tensor:
    return torch.rand((count, 3), generator=seeded(2))


def test_noise_alone_is_two_draws(pictures: Tensor) -> None:
    chosen, generator = random_corruptions("noise"), seeded(5)
    sigma = torch.rand((BATCH, 1, 1, 1), generator=generator) * 1.2
    expected = pictures + sigma * torch.randn(pictures.shape, generator=generator)
    assert torch.equal(chosen.apply(pictures, chosen.draw(BATCH, SHAPE, seeded(5))), expected)


def test_blur_is_a_gaussian(pictures: Tensor) -> None:
    draws = uniform()
    blurred = corruptions.RANDOM["blur"](pictures, draws)
    for row, picture, u in zip(blurred, pictures, draws[:, 0].tolist(), strict=True):
        expected = gaussian_filter(picture.numpy(), 0.3 + 1.7 * u, axes=(1, 2), mode="nearest", radius=6)
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-5)


def test_low_resolution_repeats_averages(pictures: Tensor) -> None:
    strengths = torch.tensor([0.0, 0.5, 0.99])[:, None].expand(3, 3)
    halved, _, quartered = corruptions.RANDOM["low_resolution"](pictures[:3], strengths)
    for factor, picture, coarse in ((2, pictures[0], halved), (4, pictures[2], quartered)):
        squares = picture.reshape(3, SIDE // factor, factor, SIDE // factor, factor).mean((2, 4))
        torch.testing.assert_close(coarse, squares.repeat_interleave(factor, 1).repeat_interleave(factor, 2))
    assert torch.equal(corruptions.RANDOM["low_resolution"](pictures[:1], strengths[:1])[0], halved)


def test_a_hole_is_a_grey_square_anywhere(pictures: Tensor) -> None:
    light = pictures.abs() + 0.1
    holes = corruptions.RANDOM["hole"](light, uniform()) == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    corners = set()
    for hole in holes[:, 0]:
        rows, columns = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
        side = len(rows)
        assert len(columns) == side
        assert int(hole.sum()) == side**2
        assert round(0.2 * SIDE) <= side <= round(0.5 * SIDE)
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > BATCH // 2
    extreme = torch.tensor([[0.999, 0.999, 0.999], [0.0, 0.0, 0.0]])
    last, first = (corruptions.RANDOM["hole"](light[:2], extreme) == 0)[:, 0]
    assert bool(last[-1, -1])
    assert bool(first[0, 0])


def test_a_sketch_divides_by_the_surroundings(pictures: Tensor) -> None:
    draws = uniform(1)
    sigma = (1.75 + 3.5 * float(draws[0, 0])) * SIDE / 64
    light = pictures[:1].mean(1).numpy() + 1.0
    around = gaussian_filter(light, sigma, axes=(1, 2), mode="nearest", radius=7)
    expected = np.clip(light / (around + 1e-10) - 1.0, -1.0, 1.0)
    lines = corruptions.RANDOM["sketch"](pictures[:1], draws)
    for channel in range(3):
        np.testing.assert_allclose(lines[:, channel].numpy(), expected, atol=1e-5)
    dark = torch.full((1, *SHAPE), -1.0)
    assert torch.equal(corruptions.RANDOM["sketch"](dark, draws), dark)


def test_small_corruptions_by_hand(pictures: Tensor) -> None:
    torch.testing.assert_close(corruptions.to_grey(pictures)[:, 1], pictures.mean(1))
    rounded = corruptions.round_to_8_bits(torch.tensor([-3.0, 0.001, 7.0])).tolist()
    assert rounded == pytest.approx([-1.0, 0.5 / 127.5, 1.0], abs=1e-6)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 3, 14, 14)).astype(np.float32)
    expected = gaussian_filter(x.astype(np.float64), 0.75, axes=(2, 3), mode="nearest")
    np.testing.assert_allclose(corruptions.blur(1.5)(x), expected, atol=1e-6)  # sigma scales with the side
    flat = np.full((1, 3, 64, 64), 0.3, np.float32)
    np.testing.assert_allclose(corruptions.sketch(3.5)(flat), 0.0, atol=1e-5)  # no lines
    assert corruptions.low_resolution(4)(x[..., :11, :9]).shape == (3, 3, 11, 9)
    hidden = corruptions.hole(0.5)(np.ones((1, 1, 8, 8), np.float32))[0, 0]
    assert (hidden[2:6, 2:6] == 0).all()
    assert hidden.sum() == 64 - 16


def test_every_row_gets_one_corruption_and_the_input_is_unchanged(pictures: Tensor) -> None:
    chosen, before = random_corruptions(), pictures.clone()
    draws = chosen.draw(BATCH, SHAPE, seeded(3))
    corrupted = chosen.apply(pictures, draws)
    assert torch.equal(pictures, before)
    assert sorted(set(draws.kind.tolist())) == list(range(len(chosen.names)))
    for row in range(BATCH):
        name, x, u = chosen.names[int(draws.kind[row])], pictures[row : row + 1], draws.uniform[row : row + 1]
        expected = (
            x + 1.2 * u[0, 0] * draws.normal[row : row + 1] if name == "noise" else corruptions.RANDOM[name](x, u)
        )
        torch.testing.assert_close(corrupted[row : row + 1], expected, atol=1e-6, rtol=0)


def test_a_share_of_the_rows_is_rounded(pictures: Tensor) -> None:
    chosen = random_corruptions("noise", eight_bit=0.5)
    corrupted = chosen.apply(pictures, chosen.draw(BATCH, SHAPE, seeded(3)))
    rounded = (corrupted == corruptions.round_to_8_bits(corrupted)).flatten(1).all(1)
    assert BATCH / 4 < int(rounded.sum()) < 3 * BATCH / 4
    assert float(corrupted[~rounded].abs().max()) > 1.0


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=list(CORRUPTIONS))
def test_a_fixed_corruption_is_deterministic_for_each_picture(corrupt: Corruption) -> None:
    x = GREY.copy()
    corrupted = corrupt(x)
    assert corrupted.shape == GREY.shape
    assert corrupted.dtype == np.float32
    assert np.array_equal(x, GREY)
    assert np.array_equal(corrupt(x), corrupted)
    np.testing.assert_allclose(corrupt(x[:5]), corrupted[:5], atol=1e-6)  # independent of the batch
    assert psnr(corrupted, GREY).mean() < 40


def test_fixed_noise_has_its_sigma_and_differs_between_pictures() -> None:
    n = corruptions.noise(0.8)(GREY) - GREY
    assert abs(float(n.std()) - 0.8) < 0.03
    assert not np.array_equal(n[0], n[1])
    rounded = CORRUPTIONS["noise_0.8_8bit"](GREY)
    np.testing.assert_allclose(to_rows(to_levels(rounded)), rounded, atol=1e-6)
    assert np.abs(rounded).max() == 1.0


def test_thinning_removes_a_pixel_from_light_or_dark_strokes() -> None:
    x = np.full((1, 1, 28, 28), -1.0, np.float32)
    x[:, :, :, 10:13] = 1.0
    assert (corruptions.thin(light=True)(x) > 0).sum() == 2 * 28
    assert (corruptions.thin(light=False)(-x) < 0).sum() == 2 * 28
