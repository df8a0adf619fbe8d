from typing import Any

import pytest
import torch
from torch import nn

from model_export.training.network import Autoencoder, NetworkConfig

SMALL = {"widths": (8, 16), "bottleneck": 12}


def network(**changes: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(**{"size": 8, "channels": 1, **SMALL, **changes}))


@pytest.mark.parametrize("size", [8, 9, 11, 14, 15, 28])
def test_shape_is_kept_for_even_and_odd_sizes(size: int) -> None:
    f = network(size=size, channels=3)
    y = f(torch.randn(2, 3, size, size))
    assert y.shape == (2, 3, size, size)
    assert y.abs().max() <= 1.0
    torch.testing.assert_close(
        f.train()(torch.ones(2, 3, size, size))[:1], f(torch.ones(1, 3, size, size))
    )


@pytest.mark.parametrize("size", [8, 15, 28])
def test_everything_passes_the_bottleneck(size: int) -> None:
    f = network(size=size)
    x = torch.randn(3, 1, size, size)
    assert f.encoder(x).shape == (3, SMALL["bottleneck"], 1, 1)
    f.encoder.register_forward_hook(lambda _, __, code: torch.zeros_like(code))
    y = f(x)
    assert y.shape == x.shape
    # with the code gone nothing of the input is left: no skip connection
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[0], y[2])


@pytest.mark.parametrize("size", [8, 15, 28])
def test_the_bottleneck_computes_the_convolutions_it_exports(size: int) -> None:
    f = network(size=size)
    inwards = f.encoder[-2]
    outwards = f.decoder[0]
    assert isinstance(inwards, nn.Conv2d)
    assert isinstance(outwards, nn.ConvTranspose2d)
    x = torch.randn(3, 16, *inwards.kernel_size)
    torch.testing.assert_close(inwards(x), nn.Conv2d.forward(inwards, x))
    code = torch.randn(3, 12, 1, 1)
    torch.testing.assert_close(outwards(code), nn.ConvTranspose2d.forward(outwards, code))
