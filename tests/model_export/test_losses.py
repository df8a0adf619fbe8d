import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from model_export import losses
from model_export.networks import Autoencoder, NetworkConfig


@pytest.fixture
def f() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(size=8, channels=1, widths=(8, 16), bottleneck=8, groups=4))


@pytest.fixture
def x() -> Tensor:
    return torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def z() -> Tensor:
    return torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(2))


def half(x: Tensor) -> Tensor:
    return x / 2


def gradients(network: nn.Module) -> Iterator[Tensor]:
    for parameter in network.parameters():
        if parameter.grad is not None:
            yield parameter.grad


def test_distance_is_a_mean_over_pixels_for_each_row() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, -3.0])[:, None, None, None].expand(2, 1, 2, 2)
    assert losses.distance(a, b, "mse").tolist() == [1.0, 9.0]
    assert losses.distance(a, b, "l1").tolist() == [1.0, 3.0]


def test_values_of_the_plain_terms(x: Tensor, z: Tensor) -> None:
    expected = (x / 2).square().mean((1, 2, 3))
    torch.testing.assert_close(losses.reconstruction(half, x, "mse"), expected)
    away = (z / 2 - x).abs().mean()
    for term in (losses.imle, losses.matched, losses.projection):
        torch.testing.assert_close(term(half, z, x, "l1"), away)


def test_idempotence_moves_the_inner_f_only(f: Autoencoder, z: Tensor) -> None:
    torch.autograd.backward(losses.idempotence(losses.frozen(f), f(z), "mse"))
    ours = [grad.clone() for grad in gradients(f)]
    f.zero_grad()
    f_copy = copy.deepcopy(f).requires_grad_(False)
    y = f(z)
    torch.autograd.backward((f_copy(y) - y).square().mean())
    for a, b in zip(ours, gradients(f), strict=True):
        torch.testing.assert_close(a, b)
    assert any(grad.abs().max() > 0 for grad in ours)


def test_idempotence_leaves_the_outer_f_alone(f: Autoencoder, z: Tensor) -> None:
    y = f(z).detach().requires_grad_()
    torch.autograd.backward(losses.idempotence(losses.frozen(f), y, "mse"))
    assert not list(gradients(f))
    assert y.grad is not None
    assert y.grad.abs().max() > 0


def test_tightness_trains_the_outer_f_only(f: Autoencoder, z: Tensor) -> None:
    y = f(z).detach().requires_grad_()
    torch.autograd.backward(losses.tightness(f, y, "mse").mean())
    assert y.grad is None
    assert any(grad.abs().max() > 0 for grad in gradients(f))


def test_tightness_is_minus_the_distance(z: Tensor) -> None:
    torch.testing.assert_close(losses.tightness(half, z, "mse"), -(z / 2).square().mean((1, 2, 3)))


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    f = nn.BatchNorm2d(1).train()
    losses.frozen(f)(torch.randn(4, 1, 2, 2) + 5.0)
    assert f.running_mean is not None
    assert float(f.running_mean) == 0.0


def test_clamp_bounds_each_row_and_leaves_small_values() -> None:
    rec = torch.tensor([0.1, 0.1, 0.4])
    tight = torch.tensor([-1e-4, -50.0, -50.0])
    clamped = losses.smooth_clamp(tight, rec, 1.5)
    torch.testing.assert_close(clamped, torch.tensor([-1e-4, -0.15, -0.6]))
    assert losses.smooth_clamp(tight, rec, None) is tight
    assert torch.isfinite(losses.smooth_clamp(tight, torch.zeros(3), 1.5)).all()


def test_the_bound_is_a_constant() -> None:
    rec, tight = torch.tensor([0.1], requires_grad=True), torch.tensor([-0.1], requires_grad=True)
    torch.autograd.backward(losses.smooth_clamp(tight, rec, 1.5).sum())
    assert rec.grad is None
    assert tight.grad is not None


def test_distillation_follows_k_steps_of_a_teacher_without_teaching_it(f: Autoencoder, z: Tensor) -> None:
    torch.testing.assert_close(
        losses.distillation(half, half, z, 3, "mse"), (z / 2 - z / 8).square().mean(), atol=1e-6, rtol=1e-5
    )
    teacher = copy.deepcopy(f)
    torch.autograd.backward(losses.distillation(f, teacher, z, 2, "mse"))
    assert not list(gradients(teacher))
    assert any(grad.abs().max() > 0 for grad in gradients(f))


def test_added_noise_has_a_scale_of_its_own_in_every_row() -> None:
    noise = losses.add_noise(torch.zeros(400, 1, 16, 16), 0.5, 1.0, torch.Generator().manual_seed(0))
    scale = noise.std((1, 2, 3))
    assert 0.4 < float(scale.min()) < 0.6
    assert 0.9 < float(scale.max()) < 1.1
    assert abs(float(scale.mean()) - 0.75) < 0.03
