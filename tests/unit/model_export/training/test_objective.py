import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.drifting import FeatureGroups, drifting_loss
from model_export.training.network import Autoencoder, NetworkConfig
from model_export.training.objective import Objective
from model_export.training.stages import Stage, Weights

CRISP_TERMS = ["gate", "code_drifting", "code_critic", "frechet", "fitting", "second"]
FEATURE_TERMS = ["drifting", "features", "project_any"]
OTHERS = [*FEATURE_TERMS, *CRISP_TERMS, "marks", "again"]
TERMS = [field.name for field in dataclasses.fields(Weights) if field.name not in OTHERS]


def rows(seed: int) -> Tensor:
    return torch.randn(
        (3, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


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


def gradient(
    network: nn.Module, objective: Objective, batch: TrainingBatch
) -> tuple[Tensor, dict[str, float]]:
    network.zero_grad()
    terms = objective.terms(network, batch)
    torch.autograd.backward(objective.total(terms))
    flat = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return flat, {name: float(value.detach()) for name, value in terms.items()}


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
    ours, _ = gradient(small, Objective(stage=stage(weights, clamp=clamp), kind="mse"), game)
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
    terms = objective.terms(small, batch)
    assert set(terms) == set(TERMS)
    total = sum(getattr(weights, name) * float(value.detach()) for name, value in terms.items())
    assert float(objective.total(terms).detach()) == pytest.approx(total)


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
        feature_groups=FeatureGroups(teacher.features),
    )


def test_drawings_after_f_are_sets_of_their_own(
    network: Autoencoder, single: TrainingBatch
) -> None:
    """Each set repels its own samples only: joined, f(u) could be all of one kind and f(z) all of
    another.
    """
    objective = feature_objective(network, Weights(drifting=1.0, project_any=1.0))
    terms = objective.terms(network, single)
    assert single.drawings is not None
    assert single.drift_pictures is not None
    assert objective.feature_groups is not None
    groups = objective.feature_groups
    once = network(single.drawings)
    pictures = groups(single.drift_pictures)
    both = (once, network(once[::2]))
    first, second = (drifting_loss(groups(y), pictures) for y in both)
    torch.testing.assert_close(terms["project_any"], first + second / 2)
    without = objective.terms(network, dataclasses.replace(single, drawings=None))
    torch.testing.assert_close(terms["drifting"], without["drifting"])
    assert "project_any" not in without
