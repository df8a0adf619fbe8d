from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_export.training.network import Autoencoder, NetworkConfig, SoftQuantizer, parameter_count

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


def test_a_bottleneck_of_places_leaves_nothing_else_of_the_input() -> None:
    f = network(size=16, places=4)
    x = torch.randn(3, 1, 16, 16)
    assert f.encoder(x).shape == (3, SMALL["bottleneck"], 4, 4)
    f.encoder.register_forward_hook(lambda _, __, code: torch.zeros_like(code))
    y = f(x)
    assert y.shape == x.shape
    assert torch.equal(y[0], y[1])


def test_every_place_depends_on_the_whole_picture() -> None:
    f = network(size=64, widths=(8, 16, 16), places=8, groups=4)
    x = torch.zeros(1, 1, 64, 64, requires_grad=True)
    torch.autograd.backward(f.encoder(x)[0, :, 0, 0].sum())
    assert x.grad is not None
    assert (x.grad[0, 0, -8:, -8:] != 0).any()


@pytest.mark.parametrize("changes", [{"places": 2}, {"places": 4, "quantizer": 4}])
def test_places_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bottleneck"):
        network(size=16, **changes)


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


def codes(count: int = 200) -> Tensor:
    """Codes (count, 5, 1, 1) that two components describe up to an error of 0.001."""
    generator = torch.Generator().manual_seed(1)
    two = torch.randn((count, 2), generator=generator) * torch.tensor([4.0, 2.0])
    five = two @ torch.randn((2, 5), generator=generator) + 3.0
    return (five + 1e-3 * torch.randn(five.shape, generator=generator))[:, :, None, None]


@pytest.fixture
def quantizer() -> SoftQuantizer:
    quantizer = SoftQuantizer(5, 2).eval().requires_grad_(False)
    quantizer.fit(codes(), 3.0)
    return quantizer


def at(quantizer: SoftQuantizer, component: float) -> Tensor:
    """The code (1, 5, 1, 1) whose components have this value."""
    projected = torch.cat([torch.full((1, 2, 1, 1), component), torch.zeros(1, 3, 1, 1)], 1)
    code: Tensor = quantizer.reconstruct(projected)
    return code


def test_a_quantiser_that_is_not_fitted_returns_its_input() -> None:
    assert torch.equal(SoftQuantizer(5, 2)(codes()), codes())


def test_the_components_describe_the_codes_to_which_they_are_fitted(quantizer: SoftQuantizer) -> None:
    components = quantizer.components(codes())
    assert float(components.std(0).mean()) == pytest.approx(3.0, rel=0.01)  # levels per deviation
    assert float(components.mean(0).abs().max()) < 1e-3
    assert float(quantizer.power) == pytest.approx(float(components.square().mean()), rel=1e-3)
    alone = torch.cat([components, torch.zeros(200, 3, 1, 1)], 1)
    torch.testing.assert_close(quantizer.reconstruct(alone), codes(), atol=0.02, rtol=0.0)


def test_other_components_keep_only_what_exceeds_the_spread_of_pictures(quantizer: SoftQuantizer) -> None:
    values = torch.tensor([0.9, -0.9, 10.0])  # in units of 2.5 standard deviations of the codes
    code = quantizer.reconstruct(torch.cat([torch.zeros(2), values])[None, :, None, None])
    kept = quantizer.project(quantizer(code)).flatten()[2:]
    torch.testing.assert_close(kept, torch.tensor([0.0, 0.0, 9.0]), atol=0.1, rtol=0.0)
    rest = quantizer.project(codes())[:, 2:]
    assert float(rest.std()) == pytest.approx(1 / 2.5, rel=0.05)


@pytest.mark.parametrize(("component", "slope"), [(0.0, 0.0), (1.0, 0.0), (-2.0, 0.0), (0.5, 4.0), (-1.5, 4.0)])
def test_slopes_are_zero_at_levels_and_steep_between_them(
    component: float, slope: float, quantizer: SoftQuantizer
) -> None:
    step = 0.01
    ends = [quantizer.components(quantizer(at(quantizer, component + side * step))) for side in (-1, 1)]
    torch.testing.assert_close((ends[1] - ends[0]) / (2 * step), torch.full((1, 2, 1, 1), slope), atol=0.05, rtol=0.0)


def test_repeated_quantisation_ends_at_the_nearest_level(quantizer: SoftQuantizer) -> None:
    code = codes()
    level = quantizer.components(code).round()
    for _ in range(20):
        code = quantizer(code)
    error = (quantizer.components(code) - level).abs()
    assert float((error < 1e-3).float().mean()) > 0.98  # all except codes midway between levels


def test_errors_of_many_round_trips_do_not_add_up(quantizer: SoftQuantizer) -> None:
    origin = at(quantizer, 0.0)
    error = at(quantizer, 0.25) - origin
    kept = moved = origin
    for _ in range(1000):
        kept, moved = quantizer(kept + error), moved + error
    assert float(quantizer.components(kept).abs().max()) < 0.1
    assert float(quantizer.components(moved).min()) > 200


def test_gradients_pass_as_through_the_projection_alone(quantizer: SoftQuantizer) -> None:
    code, plain = codes().requires_grad_(), codes().requires_grad_()
    torch.autograd.backward(quantizer(code).sum())
    projected = quantizer.project(plain)
    rest = projected[:, 2:]
    passed = torch.cat([projected[:, :2], rest - rest.clamp(-1.0, 1.0)], 1)
    torch.autograd.backward(quantizer.reconstruct(passed).sum())
    assert code.grad is not None
    torch.testing.assert_close(code.grad, plain.grad)


def test_a_network_has_components_only_with_a_quantiser() -> None:
    x = torch.randn(3, 1, 8, 8)
    assert network(quantizer=4).components(x).shape == (3, 4, 1, 1)
    assert network(quantizer=4)(x).shape == x.shape
    with pytest.raises(TypeError, match="no quantiser"):
        network().components(x)
    with pytest.raises(ValueError, match="13 components"):
        network(quantizer=13)
