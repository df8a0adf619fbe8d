"""Exact networks: with any weights, f(f(x)) = f(x) in every bit, and f draws its pictures from
their readings alone.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from model_export.training.blocks import Blocks
from model_export.training.network import Autoencoder, NetworkConfig

CONFIG = NetworkConfig(size=28, channels=1, widths=(8, 16), bottleneck=32, blocks=2)
LATENTS = torch.randn((64, 1, 28, 28), generator=torch.Generator().manual_seed(0))
ROWS = {
    "latents": LATENTS,
    "noise": 10 * LATENTS,
    "pictures": (6 * avg_pool2d(LATENTS, 5, 1, 2) - 1).clamp(-1, 1),
}


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def blocks(network: Autoencoder) -> Blocks:
    assert network.blocks is not None
    for parameter in network.blocks.draw.parameters():
        parameter.mul_(2)  # drawings that need to be moved to their readings
    network.blocks.fitted.fill_(1)
    return network.blocks


@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS)
def test_f_of_f_is_f_in_every_bit_also_through_a_file(
    network: Autoencoder, blocks: Blocks, x: Tensor
) -> None:
    y = network(x)
    assert y.abs().max() <= 1
    assert torch.equal(network(y), y)
    assert torch.equal(network(((y + 1) * 127.5).round() / 127.5 - 1), y)
    assert torch.equal(network(y + 0.01 * LATENTS.clamp(-3, 3)), y)
    assert not torch.equal(y, network(LATENTS.flip(0)))
    assert (blocks.margin(y, y) > 0.3).any()


@pytest.mark.parametrize("name", ["latents", "pictures"])
def test_pictures_with_the_means_of_a_reading_are_drawn_anew(
    network: Autoencoder, blocks: Blocks, name: str
) -> None:
    x = ROWS[name].clamp(-0.8, 0.8)
    reading = blocks.read(x)
    forged = x + interpolate((reading.round() - reading) / 4, scale_factor=2.0)
    y = network(forged)
    assert not (y == forged).flatten(1).all(1).any()
    torch.testing.assert_close(blocks.read(y).round(), blocks.read(forged).round())


def test_a_picture_in_black_and_white_alone_does_not_pass_for_one_of_f(blocks: Blocks) -> None:
    assert (blocks.own(blocks.read(ROWS["pictures"].sign())) < 0).all()


def test_until_they_are_fitted_the_blocks_return_the_picture_of_the_autoencoder() -> None:
    blocks = Blocks(3, 4)
    x = torch.rand(2, 3, 8, 8)
    y = torch.rand(2, 3, 8, 8)
    assert torch.equal(blocks(x, y), y)
    blocks.fit(torch.rand(9, 3, 8, 8) * 2 - 1, 3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(blocks(x, y), blocks(blocks(x, y), x))


def test_gradients_pass_the_blocks_as_if_nothing_were_rounded(blocks: Blocks) -> None:
    network = Autoencoder(CONFIG)
    network.blocks = blocks
    torch.autograd.backward(network(LATENTS).square().sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.decoder.parameters())
