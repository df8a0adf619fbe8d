from typing import Any

import pytest
import torch

from model_export.training.crisp import Crisp
from model_export.training.network import Dense, NetworkConfig

SMALL = {"size": 16, "channels": 3, "widths": (8, 16), "bottleneck": 6, "palette": 5}


def network(**changes: Any) -> Crisp:
    torch.manual_seed(0)
    return Crisp(NetworkConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize(("size", "channels", "widths"), [(8, 1, (8,)), (16, 3, (8, 16)), (28, 1, (8, 16))])
def test_shape_and_range_are_kept(size: int, channels: int, widths: tuple[int, ...]) -> None:
    f = network(size=size, channels=channels, widths=widths)
    x = 3 * torch.randn(2, channels, size, size)
    y = f(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1.0
    torch.testing.assert_close(f(x[:1]), y[:1])


def test_a_size_that_is_not_halved_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="15 is no multiple of 4"):
        network(size=15)


@pytest.mark.parametrize(("logit", "part"), [(-40.0, "invent"), (40.0, "read")])
def test_the_gate_decides_which_code_is_drawn(logit: float, part: str) -> None:
    """Everything passes the code: with the one of the gate's choice gone, nothing of the input is left."""
    f, x = network(), torch.randn(3, 3, 16, 16)
    last = f.read.gate[-1]
    assert isinstance(last, Dense)
    assert last.bias is not None
    last.weight.data.zero_()
    last.bias.data.fill_(logit)
    before = f(x)
    assert not torch.allclose(before[0], before[1])
    unused, used = (f.get_submodule(name) for name in (part, {"invent": "read", "read": "invent"}[part]))
    for parameter in unused.parameters():
        if parameter is not last.bias:
            parameter.data.add_(torch.randn_like(parameter)).mul_(float(parameter is not last.weight))
    torch.testing.assert_close(f(x), before)
    code = f.code(x)[0] if used is f.read else f.invented(f.invent.numbers(x))
    torch.testing.assert_close(f.draw(code), before)


def test_the_numbers_of_normal_noise_are_normal() -> None:
    f = network()
    numbers = f.invent.numbers(torch.randn(500, 3, 16, 16))
    assert numbers.shape[1:] == f.numbers
    covariance = torch.cov(numbers.flatten(1).T)
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), atol=0.3, rtol=0.0)


def test_every_place_of_a_code_depends_on_the_whole_picture() -> None:
    f, x = network(), torch.zeros(1, 3, 16, 16, requires_grad=True)
    for parameter in f.parameters():  # some begin with 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.autograd.backward(f.code(x)[0][0, :, 0, 0].sum())
    assert x.grad is not None
    assert (x.grad[0, :, -4:, -4:] != 0).any()


def test_the_palette_begins_with_the_colours_of_pictures() -> None:
    colours = torch.tensor([[-0.8, 0.0, 0.9], [0.5, 0.5, 0.5], [0.1, -0.6, 0.2], [0.9, -0.9, 0.0], [-0.2, 0.3, -0.4]])
    pictures = colours[torch.randint(5, (8, 16, 16), generator=torch.Generator().manual_seed(1))].movedim(-1, 1)
    f = network()
    f.draw.fit_palette(pictures, torch.Generator().manual_seed(0))
    bias = f.draw.palette.bias
    assert bias is not None
    fitted = torch.tanh(bias.detach()).view(3, 5).T
    distances = torch.cdist(colours, fitted).amin(1)
    assert (distances < 0.05).sum() >= 3  # the first ones may be twice the same
