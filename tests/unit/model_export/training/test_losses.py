import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model_export.training import losses
from model_export.training.stages import Distance


def half(x: Tensor) -> Tensor:
    return x / 2


def test_the_feature_distance_is_relative_to_the_features_of_the_picture() -> None:
    target = [torch.full((2, 3, 4, 4), 2.0), torch.full((2, 5, 1, 1), 10.0)]
    off = [target[0] + 1.0, target[1] * 2.0]
    assert float(losses.feature_distance(off, target)) == pytest.approx((0.25 + 1.0) / 2)
    assert float(losses.feature_distance(target, target)) == 0.0


def test_clamp_bounds_each_row_and_leaves_small_values() -> None:
    rec = torch.tensor([0.1, 0.1, 0.4])
    tight = torch.tensor([-1e-4, -50.0, -50.0])
    clamped = losses.smooth_clamp(tight, rec, 1.5)
    torch.testing.assert_close(clamped, torch.tensor([-1e-4, -0.15, -0.6]))
    assert losses.smooth_clamp(tight, rec, None) is tight
    assert torch.isfinite(losses.smooth_clamp(tight, torch.zeros(3), 1.5)).all()
    bound = rec.clone().requires_grad_()
    torch.autograd.backward(losses.smooth_clamp(tight.requires_grad_(), bound, 1.5).sum())
    assert bound.grad is None  # the bound is a constant


@pytest.mark.parametrize("kind", ["mse", "l1", "mse_l1"])
def test_values_by_hand(kind: Distance) -> None:
    x = torch.tensor([[[[1.0, -2.0]]]])
    y = torch.tensor([[[[0.0, 1.0]]]])

    def expect(mse: float, l1: float) -> Any:
        return pytest.approx({"mse": mse, "l1": l1, "mse_l1": mse + 0.2 * l1}[kind])

    to_half = expect(0.625, 0.75)  # of x/2 from x: 0.5 and 1
    to_other = expect(2.125, 1.25)  # of x/2 from y: 0.5 and 2
    assert losses.reconstruction(half, x, kind).tolist() == [to_half]
    assert float(losses.idempotence(half, x, kind)) == to_half
    assert (-losses.tightness(half, x, kind)).tolist() == [to_half]
    assert losses.distance(half(x), y, kind).tolist() == [to_other]
    from_quarter = expect(0.15625, 0.375)  # of x/2 from x/4: 0.25 and 0.5
    assert float(losses.distillation(half(x), half, x, 2, kind)) == from_quarter
    clamped = losses.smooth_clamp(torch.tensor([-0.3]), torch.tensor([0.2]), 1.5)
    assert clamped.tolist() == pytest.approx([-0.3 * math.tanh(1.0)])


def test_the_terms_of_the_discriminator_by_hand() -> None:
    real = [torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 1.0])]
    fake = [torch.tensor([-2.0, 0.0]), torch.tensor([1.0, -0.5])]
    assert float(losses.hinge_loss(real, fake)) == (0.25 + 0.5) + (1.0 + 1.25)
    assert float(losses.generator_loss(fake)) == 1.0 - 0.25
    with pytest.raises(ValueError, match="shorter"):
        losses.hinge_loss(real, fake[:1])
