import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from model_export.data import corruptions
from model_export.training.distributed import Ranks
from model_export.training.presets import PRESETS, Degradation, Preset

BATCH, SIDE = 60, 28
COLOUR = dataclasses.replace(
    PRESETS["mnist"],
    network=dataclasses.replace(PRESETS["mnist"].network, channels=3),
    degradations=get_args(Degradation),
    eight_bit=0.0,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand((BATCH, 3, SIDE, SIDE), generator=seeded(1)) * 2 - 1


def uniform(count: int = BATCH) -> Tensor:
    return torch.rand((count, 3), generator=seeded(2))


def test_noise_has_a_scale_of_its_own_in_every_row() -> None:
    shape = (400, 1, 16, 16)
    normal = torch.randn(shape, generator=seeded())
    spoiled = corruptions.noise(torch.zeros(shape), uniform(400), normal, 0.5, 1.0)
    scale = spoiled.std((1, 2, 3))
    assert 0.4 < float(scale.min()) < 0.6
    assert 0.9 < float(scale.max()) < 1.1
    assert abs(float(scale.mean()) - 0.75) < 0.03


def test_noise_alone_is_two_draws(pictures: Tensor) -> None:
    preset: Preset = dataclasses.replace(COLOUR, degradations=("noise",))
    generator = seeded(5)
    scale = torch.rand((BATCH, 1, 1, 1), generator=generator) * 1.2
    expected = pictures + scale * torch.randn(pictures.shape, generator=generator)
    assert torch.equal(corruptions.degraded(pictures, preset, corruptions.draw(preset, BATCH, seeded(5))), expected)


def test_blur_is_a_gaussian(pictures: Tensor) -> None:
    chosen = uniform()
    spoiled = corruptions.blur(pictures, chosen)
    for row, picture, u in zip(spoiled, pictures, chosen[:, 0].tolist(), strict=True):
        expected = gaussian_filter(picture.numpy(), 0.3 + 1.7 * u, axes=(1, 2), mode="nearest", radius=6)
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-5)


def test_low_resolution_repeats_averages(pictures: Tensor) -> None:
    strengths = torch.tensor([0.0, 0.5, 0.99])[:, None].expand(3, 3)
    halved, _, quartered = corruptions.low_resolution(pictures[:3], strengths)
    for factor, picture, spoiled in ((2, pictures[0], halved), (4, pictures[2], quartered)):
        squares = picture.reshape(3, SIDE // factor, factor, SIDE // factor, factor).mean((2, 4))
        expected = squares.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        torch.testing.assert_close(spoiled, expected)
    assert torch.equal(corruptions.low_resolution(pictures[:1], strengths[:1])[0], halved)


def test_a_hole_is_a_grey_square_anywhere(pictures: Tensor) -> None:
    light = pictures.abs() + 0.1
    holes = corruptions.hole(light, uniform()) == 0
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
    whole = torch.tensor([[0.999, 0.999, 0.999], [0.0, 0.0, 0.0]])
    last, first = (corruptions.hole(light[:2], whole) == 0)[:, 0]
    assert bool(last[-1, -1])
    assert bool(first[0, 0])


def test_grey_is_the_mean_of_the_channels(pictures: Tensor) -> None:
    spoiled = corruptions.grey(pictures, uniform())
    for channel in range(3):
        torch.testing.assert_close(spoiled[:, channel], pictures.mean(1))
    assert torch.equal(corruptions.grey(pictures[:, :1], uniform()), pictures[:, :1])


def test_a_sketch_divides_by_the_surroundings(pictures: Tensor) -> None:
    chosen = uniform(1)
    sigma = (1.75 + 3.5 * float(chosen[0, 0])) * SIDE / 64
    light = pictures[:1].mean(1).numpy() + 1.0
    around = gaussian_filter(light, sigma, axes=(1, 2), mode="nearest", radius=7)
    expected = np.clip(light / (around + 1e-10) - 1.0, -1.0, 1.0)
    spoiled = corruptions.sketch(pictures[:1], chosen)
    for channel in range(3):
        np.testing.assert_allclose(spoiled[:, channel].numpy(), expected, atol=1e-5)
    dark = torch.full((1, 3, SIDE, SIDE), -1.0)
    assert torch.equal(corruptions.sketch(dark, chosen), dark)


def test_eight_bits_are_what_a_file_holds() -> None:
    levels = torch.arange(256) / 127.5 - 1.0
    torch.testing.assert_close(corruptions.eight_bit(levels), levels, atol=1e-6, rtol=0)
    assert corruptions.eight_bit(torch.tensor([-3.0, 0.001, 7.0])).tolist() == pytest.approx(
        [-1.0, 0.5 / 127.5, 1.0], abs=1e-6
    )


def test_every_row_gets_one_of_all(pictures: Tensor) -> None:
    draws = corruptions.draw(COLOUR, BATCH, seeded(3))
    spoiled = corruptions.degraded(pictures, COLOUR, draws)
    assert sorted(set(draws.kind.tolist())) == list(range(len(COLOUR.degradations)))
    for row in range(BATCH):
        name = COLOUR.degradations[int(draws.kind[row])]
        x, u = pictures[row : row + 1], draws.uniform[row : row + 1]
        expected = (
            corruptions.noise(x, u, draws.normal[row : row + 1], *COLOUR.noise_range)
            if name == "noise"
            else corruptions.SPOIL[name](x, u)
        )
        torch.testing.assert_close(spoiled[row : row + 1], expected, atol=1e-6, rtol=0)


def test_a_share_of_the_rows_is_rounded(pictures: Tensor) -> None:
    preset = dataclasses.replace(COLOUR, degradations=("noise",), eight_bit=0.5)
    spoiled = corruptions.degraded(pictures, preset, corruptions.draw(preset, BATCH, seeded(3)))
    rounded = (spoiled == corruptions.eight_bit(spoiled)).flatten(1).all(1)
    assert BATCH / 4 < int(rounded.sum()) < 3 * BATCH / 4
    assert float(spoiled[~rounded].abs().max()) > 1.0


def test_ranks_spoil_their_rows_as_one_would(pictures: Tensor) -> None:
    preset = dataclasses.replace(COLOUR, eight_bit=0.5)
    whole = corruptions.degraded(pictures, preset, corruptions.draw(preset, BATCH, seeded(3)))
    parts = []
    for rank in range(4):
        ranks = Ranks(rank, 4)
        draws = corruptions.draw(preset, BATCH, seeded(3)).own(ranks)
        parts.append(corruptions.degraded(ranks.own(pictures), preset, draws))
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


def test_pictures_are_not_written_to(pictures: Tensor) -> None:
    before = pictures.clone()
    corruptions.degraded(pictures, COLOUR, corruptions.draw(COLOUR, BATCH, seeded(3)))
    assert torch.equal(pictures, before)
