from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_export.training.network import (
    Autoencoder,
    NetworkConfig,
    Residual,
    ScalarQuantizer,
    round_with_ramps,
)

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
    torch.testing.assert_close(f.train()(torch.ones(2, 3, size, size))[:1], f(torch.ones(1, 3, size, size)))


def test_a_network_with_residual_blocks_begins_as_one_without() -> None:
    plain, residual = network(), network(residual=True)
    layers = iter(plain.decoder)
    for layer in residual.decoder:
        if not isinstance(layer, Residual):
            layer.load_state_dict(next(layers).state_dict())
    assert any(isinstance(layer, Residual) for layer in residual.decoder)
    residual.encoder.load_state_dict(plain.encoder.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(residual(x), plain(x))


@pytest.mark.parametrize("size", [8, 15, 28])
def test_everything_passes_the_bottleneck(size: int) -> None:
    f, x = network(size=size), torch.randn(3, 1, size, size)
    assert f.encoder(x).shape == (3, SMALL["bottleneck"], 1, 1)
    f.encoder.register_forward_hook(lambda _, __, code: torch.zeros_like(code))
    y = f(x)
    assert y.shape == x.shape
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


def test_the_signal_keeps_its_scale() -> None:
    f = network(size=28, widths=(32, 64, 128), bottleneck=256)
    with torch.no_grad():
        before_tanh = f.decoder(f.encoder(torch.randn(64, 1, 28, 28)))
    assert 0.1 < float(before_tanh.std()) < 3.0


def codes(count: int = 200) -> Tensor:
    """Codes (count, 5, 1, 1) that two components describe up to an error of 0.001."""
    generator = torch.Generator().manual_seed(1)
    two = torch.randn((count, 2), generator=generator) * torch.tensor([4.0, 2.0])
    five = two @ torch.randn((2, 5), generator=generator) + 3.0
    return (five + 1e-3 * torch.randn(five.shape, generator=generator))[:, :, None, None]


@pytest.fixture
def quantizer() -> ScalarQuantizer:
    quantizer = ScalarQuantizer(5, 2).eval().requires_grad_(False)
    assert torch.equal(quantizer(codes()), codes())  # until it is fitted
    quantizer.fit(codes()[:100], codes()[100:], torch.Generator().manual_seed(0))
    return quantizer


def test_the_components_describe_the_codes_to_which_they_are_fitted(quantizer: ScalarQuantizer) -> None:
    unbounded = quantizer.project(codes()[:100])
    assert float(unbounded.std(0).mean()) == pytest.approx(1.5, rel=0.01)
    assert float(unbounded.mean(0).abs().max()) < 1e-3
    torch.testing.assert_close(quantizer.reconstruct(unbounded), codes()[:100], atol=0.02, rtol=0.0)


def test_codes_are_quantised_to_the_levels_only(quantizer: ScalarQuantizer) -> None:
    far = torch.cat([codes(), 100.0 * codes()])
    levels = round_with_ramps(quantizer.components(far))
    torch.testing.assert_close(quantizer(far), quantizer.reconstruct(levels))
    assert float(levels.abs().max()) == 7.0
    assert float((levels == levels.round()).float().mean()) > 0.9  # all except the few on a ramp


@pytest.mark.parametrize(
    ("value", "result", "slope"),
    [(0.0, 0.0, 0.0), (1.4, 1.0, 0.0), (-2.4, -2.0, 0.0), (0.5, 0.5, 32.0), (-1.5, -1.5, 32.0), (1.6, 2.0, 0.0)],
)
def test_rounding_is_flat_at_levels_and_a_ramp_between_them(value: float, result: float, slope: float) -> None:
    step = 1e-3
    below, at, above = round_with_ramps(torch.tensor([value - step, value, value + step], dtype=torch.float64))
    assert float(at) == pytest.approx(result)
    assert float(above - below) / (2 * step) == pytest.approx(slope)


def test_gradients_pass_as_if_nothing_were_rounded(quantizer: ScalarQuantizer) -> None:
    code, plain = codes().requires_grad_(), codes().requires_grad_()
    torch.autograd.backward(quantizer(code).sum())
    torch.autograd.backward(quantizer.reconstruct(quantizer.components(plain)).sum())
    assert code.grad is not None
    torch.testing.assert_close(code.grad, plain.grad)


def test_impossible_sizes_are_refused_and_only_a_quantiser_has_components() -> None:
    x = torch.randn(3, 1, 8, 8)
    assert network(quantizer=4).components(x).shape == (3, 4, 1, 1)
    assert network(quantizer=4)(x).shape == x.shape
    with pytest.raises(TypeError, match="no quantiser"):
        network().components(x)
    with pytest.raises(ValueError, match="13 components"):
        network(quantizer=13)
    with pytest.raises(ValueError, match="too small for 4 halvings"):
        network(widths=(8, 8, 8, 8))
