from typing import Any

import pytest
import torch

from model_export.training.crisp import Crisp
from model_export.training.network import Dense, NetworkConfig

SMALL = {"size": 16, "channels": 3, "widths": (8, 16), "bottleneck": 6, "palette": 5}


def network(**changes: Any) -> Crisp:
    torch.manual_seed(0)
    return Crisp(NetworkConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize(
    ("size", "channels", "widths"), [(8, 1, (8,)), (16, 3, (8, 16)), (28, 1, (8, 16))]
)
def test_shape_and_range_are_kept(size: int, channels: int, widths: tuple[int, ...]) -> None:
    f = network(size=size, channels=channels, widths=widths)
    x = 3 * torch.randn(2, channels, size, size)
    y = f(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1.0
    torch.testing.assert_close(f(x[:1]), y[:1])


@pytest.mark.parametrize(("logit", "part"), [(-40.0, "invent"), (40.0, "read")])
def test_the_gate_decides_which_code_is_drawn(logit: float, part: str) -> None:
    """Everything passes the code: with the one of the gate's choice gone, nothing of the input is
    left.
    """
    f = network()
    x = torch.randn(3, 3, 16, 16)
    last = f.read.gate[-1]
    assert isinstance(last, Dense)
    assert last.bias is not None
    last.weight.data.zero_()
    last.bias.data.fill_(logit)
    before = f(x)
    assert not torch.allclose(before[0], before[1])
    unused, used = (
        f.get_submodule(name) for name in (part, {"invent": "read", "read": "invent"}[part])
    )
    for parameter in unused.parameters():
        if parameter is not last.bias:
            parameter.data.add_(torch.randn_like(parameter)).mul_(
                float(parameter is not last.weight)
            )
    torch.testing.assert_close(f(x), before)
    code = f.code(x)[0] if used is f.read else f.invented(f.invent.numbers(x))
    torch.testing.assert_close(f.draw(code), before)


def test_the_numbers_of_normal_noise_are_normal() -> None:
    f = network()
    numbers = f.invent.numbers(torch.randn(500, 3, 16, 16))
    assert numbers.shape[1:] == f.numbers
    covariance = torch.cov(numbers.flatten(1).T)
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), atol=0.3, rtol=0.0)
