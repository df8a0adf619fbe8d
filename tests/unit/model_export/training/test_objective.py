import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.drifting import drifting_loss, feature_groups, normalised_field
from model_export.training.network import Autoencoder, NetworkConfig
from model_export.training.objective import Objective
from model_export.training.stages import Distance, Stage, Weights
from tests.unit.model_export.conftest import seeded

FEATURE_TERMS = ["drifting", "features", "project_any"]
TERMS = [
    field.name
    for field in dataclasses.fields(Weights)
    if "autoencoder" in field.metadata["networks"] and field.name not in FEATURE_TERMS
]


def rows(seed: int) -> Tensor:
    return torch.randn((3, 1, 8, 8), generator=seeded(seed), dtype=torch.float64)


@pytest.fixture
def batch() -> TrainingBatch:
    return TrainingBatch(
        x=rows(1).tanh(),
        nearest=rows(2),
        matched=rows(3),
        partner=rows(4).tanh(),
        z=rows(5),
        corrupted=rows(6),
    )


def scores(y: Tensor) -> list[Tensor]:
    """A discriminator that prefers light pictures, above all in the middle."""
    return [y.mean((1, 2, 3)), y[:, :, 2:6, 2:6].mean((1, 2, 3))]


def stage(weights: Weights, *, clamp: float | None = None) -> Stage:
    return Stage(name="s", steps=1, lr=1.0, weights=weights, teacher_steps=2, tight_clamp=clamp)


def gradient(network: nn.Module, objective: Objective, batch: TrainingBatch) -> Tensor:
    network.zero_grad()
    loss = objective.loss(network, batch)
    torch.autograd.backward(loss.total)
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


class Small(nn.Module):
    """A map in float64 throughout; one that is no identity anywhere near."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 64), nn.Tanh()
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.reshape(x.shape)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(3)
    return Small()


@pytest.mark.parametrize("clamp", [None, 1e9])
def test_the_gradient_is_that_of_the_game(
    small: Small, batch: TrainingBatch, clamp: float | None
) -> None:
    """Central differences, with everything held still that the paper holds still."""
    game = TrainingBatch(x=batch.x, z=batch.z)
    weights = Weights(rec=2.0, idem=3.0, tight=0.5)
    ours = gradient(small, Objective(stage=stage(weights, clamp=clamp), kind="mse"), game)
    fixed = copy.deepcopy(small)
    assert game.z is not None
    y = fixed(game.z).detach()

    def value() -> float:
        with torch.no_grad():
            inner = small(game.z)
            rec = losses.distance(small(game.x), game.x, "mse").mean()
            idem = losses.distance(fixed(inner), inner, "mse").mean()
            tight = -losses.distance(small(y), y, "mse").mean()
            return float(2.0 * rec + 3.0 * idem + 0.5 * tight)

    numeric = []
    step = 1e-6
    for parameter in small.parameters():
        for i in range(0, parameter.numel(), 37):
            numeric.append(slope(parameter, i, step, value))
    picked = torch.cat([p.grad.flatten()[::37] for p in small.parameters() if p.grad is not None])
    torch.testing.assert_close(
        picked, torch.tensor(numeric, dtype=torch.float64), rtol=1e-5, atol=1e-9
    )
    assert len(ours) == sum(p.numel() for p in small.parameters())


def slope(parameter: Tensor, i: int, step: float, value: Callable[[], float]) -> float:
    flat = parameter.data.view(-1)
    flat[i] += step
    above = value()
    flat[i] -= 2 * step
    below = value()
    flat[i] += step
    return (above - below) / (2 * step)


def test_all_terms_together_add_up(small: Small, batch: TrainingBatch) -> None:
    weights = Weights(**{term: float(i) for i, term in enumerate(TERMS, start=1)})
    teacher = copy.deepcopy(small).requires_grad_(False)
    objective = Objective(stage=stage(weights), kind="l1", teacher=teacher, scores=scores)
    loss = objective.loss(small, batch)
    assert set(loss.terms) == set(TERMS)
    total = sum(getattr(weights, name) * float(value) for name, value in loss.terms.items())
    assert float(loss.total.detach()) == pytest.approx(total)


@pytest.fixture
def network() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(size=8, channels=1, widths=(4, 8), bottleneck=8))


@pytest.fixture
def single(batch: TrainingBatch) -> TrainingBatch:
    """Rows for the terms of features, in float32."""
    x = rows(1).float().tanh()
    z = rows(5).float()
    corrupted = rows(6).float()
    return TrainingBatch(
        x=x,
        z=z,
        corrupted=corrupted,
        drift_pictures=rows(4).float().tanh(),
        drawings=rows(12).float(),
    )


def feature_objective(network: Autoencoder, weights: Weights) -> Objective:
    teacher = copy.deepcopy(network).requires_grad_(False)
    return Objective(
        stage=Stage(name="s", steps=1, lr=1.0, weights=weights),
        kind="mse",
        features=teacher.features,
    )


def test_drawings_after_f_are_sets_of_their_own(
    network: Autoencoder, single: TrainingBatch
) -> None:
    """Each set repels its own samples only: joined, f(u) could be all of one kind and f(z) all of
    another.
    """
    objective = feature_objective(network, Weights(drifting=1.0, project_any=1.0))
    terms = objective.loss(network, single).terms
    assert single.drawings is not None
    assert single.drift_pictures is not None
    features = objective.features
    assert features is not None
    once = network(single.drawings)
    pictures = feature_groups(features(single.drift_pictures))
    both = (once, network(once[::2]))
    first, second = (drifting_loss(feature_groups(features(y)), pictures) for y in both)
    torch.testing.assert_close(terms["project_any"], first + second / 2)
    without = objective.loss(network, dataclasses.replace(single, drawings=None)).terms
    torch.testing.assert_close(terms["drifting"], without["drifting"])
    assert "project_any" not in without


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


@pytest.mark.parametrize(("kind", "share"), [("mse", (1, 0)), ("l1", (0, 1)), ("mse_l1", (1, 0.2))])
def test_distances_by_hand(kind: Distance, share: tuple[float, float]) -> None:
    x = torch.tensor([[[[1.0, -2.0]]], [[[0.0, 0.0]]]])
    y = torch.tensor([[[[0.5, -1.0]]], [[[0.0, 0.0]]]])
    expected = share[0] * 0.625 + share[1] * 0.75
    assert losses.distance(x, y, kind).tolist() == pytest.approx([expected, 0.0])
    # T is x/2, so T²(x) is half of y.
    learned = losses.distillation(y, lambda z: z / 2, x, 2, kind)
    assert float(learned) == pytest.approx((share[0] * 0.15625 + share[1] * 0.375) / 2)


def points(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn((count, width), generator=seeded(seed), dtype=torch.float64)


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


def test_the_loss_moves_samples_to_the_distribution_of_the_pictures() -> None:
    pictures = torch.cat([points(100, 0, 2) * 0.1 - 1.0, points(100, 1, 2) * 0.1 + 1.0]).float()
    samples = (points(80, 2, 2) * 0.1).float().requires_grad_()
    optimiser = torch.optim.Adam([samples], 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        torch.autograd.backward(drifting_loss([samples], [pictures]))
        optimiser.step()
    assert 0.35 < float((samples[:, 0] > 0).float().mean()) < 0.65  # both clusters are reached
    assert torch.cdist(samples.detach(), pictures).min(1).values.median() < 0.2


def test_feature_groups_are_maps_and_moments_of_their_parts() -> None:
    maps = [torch.randn(3, 64, 7, 7)]
    groups = feature_groups(maps)
    assert [group.shape[1] for group in groups] == [64 * 4 * 4, *[2 * 64] * 5]
    torch.testing.assert_close(groups[1][:, :64], maps[0].mean((2, 3)))
    torch.testing.assert_close(groups[2][:, :64], maps[0][:, :, :4, :4].mean((2, 3)))
    torch.testing.assert_close(groups[5][:, :64], maps[0][:, :, 3:, 3:].mean((2, 3)))
