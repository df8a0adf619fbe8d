"""Exact networks: with any weights, f(f(x)) = f(x) in every bit, and f draws its pictures from their readings alone."""

import pytest
import torch
from torch import Tensor

from model_export.training.blocks import Blocks
from model_export.training.network import Autoencoder, NetworkConfig

CONFIG = NetworkConfig(size=28, channels=1, widths=(8, 16), bottleneck=32, quantizer=16, blocks=2)


def rows(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((64, 1, 28, 28), generator=generator)
    strokes = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return {"latents": noise, "noise": 10 * noise, "pictures": (6 * strokes - 1).clamp(-1, 1)}[kind]


def eight_bit(y: Tensor) -> Tensor:
    return ((y + 1) * 127.5).round() / 127.5 - 1


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(CONFIG).eval().requires_grad_(False)
    assert network.blocks is not None
    for parameter in network.blocks.draw.parameters():
        parameter.mul_(2)  # drawings that need to be moved to their readings
    network.blocks.fitted.fill_(1)
    return network


@pytest.mark.parametrize("kind", ["latents", "noise", "pictures"])
def test_f_of_f_is_f_in_every_bit_also_through_a_file_of_8_bits(network: Autoencoder, kind: str) -> None:
    y = network(rows(kind))
    assert y.abs().max() <= 1
    assert torch.equal(network(y), y)
    assert torch.equal(network(eight_bit(y)), y)
    assert not torch.equal(y, network(rows("latents").flip(0)))


def test_slight_noise_on_what_f_made_is_undone_in_every_bit(network: Autoencoder) -> None:
    y = network(rows("latents"))
    assert torch.equal(network(y + 0.01 * rows("latents").clamp(-3, 3)), y)


@pytest.mark.parametrize("kind", ["latents", "pictures"])
def test_pictures_with_the_block_means_of_a_reading_are_drawn_anew(network: Autoencoder, kind: str) -> None:
    assert network.blocks is not None
    x = rows(kind).clamp(-0.8, 0.8)
    reading = network.blocks.read(x)
    forged = x + torch.nn.functional.interpolate((reading.round() - reading) / 4, scale_factor=2.0)
    y = network(forged)
    assert not (y == forged).flatten(1).all(1).any()
    torch.testing.assert_close(network.blocks.read(y).round(), network.blocks.read(forged).round())


def test_a_picture_in_black_and_white_alone_does_not_pass_for_one_of_f(network: Autoencoder) -> None:
    assert network.blocks is not None
    letters = rows("pictures").sign()
    assert (network.blocks.own(network.blocks.read(letters)) < 0).all()


def test_until_it_is_fitted_the_blocks_return_the_picture_of_the_autoencoder() -> None:
    blocks = Blocks(3, 4)
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert torch.equal(blocks(x, y), y)
    blocks.fit(torch.rand(9, 3, 8, 8) * 2 - 1, 3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(blocks(x, y), blocks(blocks(x, y), x))


def test_gradients_pass_the_blocks_as_if_nothing_were_rounded() -> None:
    network = Autoencoder(CONFIG)
    assert network.blocks is not None
    network.blocks.fitted.fill_(1)
    torch.autograd.backward(network(rows("latents")).square().sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.decoder.parameters())


def test_a_side_that_the_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        NetworkConfig(size=28, channels=1, widths=(8, 16), bottleneck=32, blocks=3).sizes()
