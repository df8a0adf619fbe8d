from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_export.training.network import Autoencoder, NetworkConfig, parameter_count

SMALL = {"widths": (8, 16), "bottleneck": 12, "groups": 4}


def network(**changes: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(**{"size": 8, "channels": 1, **SMALL, **changes}))


@pytest.mark.parametrize("size", [8, 9, 11, 14, 15, 28])
@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_shape_is_kept_for_even_and_odd_sizes(size: int, upsampling: str) -> None:
    f = network(size=size, channels=3, upsampling=upsampling)
    y = f(torch.randn(2, 3, size, size))
    assert y.shape == (2, 3, size, size)
    assert y.abs().max() <= 1.0


@pytest.mark.parametrize("size", [8, 15, 28])
def test_everything_passes_a_bottleneck_of_one_pixel(size: int) -> None:
    f = network(size=size)
    seen: list[tuple[int, ...]] = []

    def replace(_: nn.Module, __: tuple[Tensor, ...], code: Tensor) -> Tensor:
        seen.append(tuple(code.shape))
        return torch.zeros_like(code)

    f.encoder.register_forward_hook(replace)
    y = f(torch.randn(3, 1, size, size))
    assert seen == [(3, SMALL["bottleneck"], 1, 1)]
    assert torch.equal(y[0], y[1])  # with the code gone nothing of the input is left: no skip connection
    assert torch.equal(y[0], y[2])


@pytest.mark.parametrize("size", [8, 15, 28])
def test_the_bottleneck_computes_the_convolutions_it_exports(size: int) -> None:
    f = network(size=size)
    inwards, outwards = f.encoder[-2], f.decoder[0]
    assert isinstance(inwards, nn.Conv2d)
    assert isinstance(outwards, nn.ConvTranspose2d)
    x = torch.randn(3, 16, *inwards.kernel_size)
    torch.testing.assert_close(inwards(x), nn.Conv2d.forward(inwards, x))
    code = torch.randn(3, 12, 1, 1)
    torch.testing.assert_close(outwards(code), nn.ConvTranspose2d.forward(outwards, code))


def test_group_norm_makes_rows_independent_of_their_neighbours() -> None:
    f = network().train()
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(f(x)[:1], f(x[:1]))


def test_batch_norm_does_not() -> None:
    f = network(norm="batch").train()
    x = torch.randn(4, 1, 8, 8)
    assert (f(x)[:2] - f(x[:2])).abs().max() > 1e-3


def test_the_signal_keeps_its_scale() -> None:
    f = network(size=28, widths=(32, 64, 128), bottleneck=256, groups=8)
    with torch.no_grad():
        before_tanh = f.decoder(f.encoder(torch.randn(64, 1, 28, 28)))
    assert 0.1 < float(before_tanh.std()) < 3.0


def test_too_many_halvings_are_refused() -> None:
    with pytest.raises(ValueError, match="too small for 4 halvings"):
        network(widths=(8, 8, 8, 8))


def test_parameter_count_counts_what_is_trained() -> None:
    layer = nn.Linear(3, 2)
    assert parameter_count(layer) == 8
    assert parameter_count(layer.requires_grad_(False)) == 0
