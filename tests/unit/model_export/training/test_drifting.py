import pytest
import torch
from torch import Tensor

from model_export.training.drifting import FeatureGroups, drifting_loss, field, normalised_field


def rows(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(
        (count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def drift(samples: Tensor, pictures: Tensor, others: Tensor, temperature: float) -> Tensor:
    distances = torch.cat([torch.cdist(samples, pictures), torch.cdist(samples, others)], -1)
    return field(distances, torch.cat([pictures, -others]), len(pictures), temperature)


def test_the_field_is_anti_symmetric() -> None:
    samples = rows(10, 0)
    pictures = rows(20, 1)
    others = rows(30, 2) + 1.0
    there = drift(samples, pictures, others, 0.7)
    torch.testing.assert_close(there, -drift(samples, others, pictures, 0.7))
    assert there.abs().max() > 1e-3
    assert drift(samples, pictures, pictures, 0.5).abs().max() < 1e-12


def test_no_sample_repels_itself() -> None:
    """Two samples and one picture, computed by hand."""
    samples = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    picture = torch.tensor([[1.0]], dtype=torch.float64)
    logits = (
        torch.tensor([[-1.0, -torch.inf, -4.0], [-3.0, -4.0, -torch.inf]], dtype=torch.float64)
        / 2.0
    )
    affinity = (logits.softmax(1) * logits.softmax(0)).sqrt()
    attraction = affinity[:, 0] * affinity[:, 1:].sum(1)
    expected = attraction[:, None] * picture - affinity[:, 1:] * affinity[:, :1] @ samples
    # away from each other: the picture lies between them, and is near
    assert expected[0] < 0 < expected[1]
    size = expected.square().mean().sqrt()
    torch.testing.assert_close(normalised_field(samples, picture, (2.0,)), expected / size)


def test_every_temperature_has_the_same_influence() -> None:
    samples = rows(50, 0)
    pictures = rows(60, 1) + 1.0
    temperatures = (0.02, 0.05, 0.2)
    fields = [normalised_field(samples, pictures, (t,)) for t in temperatures]
    assert [float(field.square().mean()) for field in fields] == pytest.approx([1.0] * 3)
    torch.testing.assert_close(
        normalised_field(samples, pictures, temperatures), torch.stack(fields).sum(0)
    )


def test_the_loss_moves_samples_to_the_distribution_of_the_pictures() -> None:
    pictures = torch.cat([rows(100, 0, 2) * 0.1 - 1.0, rows(100, 1, 2) * 0.1 + 1.0]).float()
    samples = (rows(80, 2, 2) * 0.1).float().requires_grad_()
    optimiser = torch.optim.Adam([samples], 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        torch.autograd.backward(drifting_loss([samples], [pictures]))
        optimiser.step()
    assert 0.35 < float((samples[:, 0] > 0).float().mean()) < 0.65  # both clusters are reached
    assert torch.cdist(samples.detach(), pictures).min(1).values.median() < 0.2


def test_feature_groups_are_maps_and_moments_of_their_parts() -> None:
    maps = [torch.randn(3, 64, 7, 7), torch.randn(3, 8, 2, 2), torch.randn(3, 16, 1, 1)]
    groups = FeatureGroups(lambda _: maps)(torch.zeros(3, 1, 28, 28))
    assert [group.shape[1] for group in groups] == [64 * 4 * 4, *[2 * 64] * 5, 8 * 4, 2 * 8, 16]
    torch.testing.assert_close(groups[1][:, :64], maps[0].mean((2, 3)))
    torch.testing.assert_close(groups[2][:, :64], maps[0][:, :, :4, :4].mean((2, 3)))
    torch.testing.assert_close(groups[5][:, :64], maps[0][:, :, 3:, 3:].mean((2, 3)))
