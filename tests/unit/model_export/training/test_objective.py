import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.critics import Critics, CriticTrainer, discriminator
from model_export.training.drifting import FeatureGroups, drifting_loss
from model_export.training.execution import World
from model_export.training.network import Autoencoder, NetworkConfig
from model_export.training.objective import Objective
from model_export.training.stages import Stage, Weights

CRISP_TERMS = ["gate", "code_drifting", "code_critic", "frechet", "fitting", "second"]
FEATURE_TERMS = ["drifting", "features", "project_any"]
OTHERS = [*FEATURE_TERMS, *CRISP_TERMS, "marks", "again"]
TERMS = [field.name for field in dataclasses.fields(Weights) if field.name not in OTHERS]


def rows(seed: int) -> Tensor:
    return torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch() -> TrainingBatch:
    return TrainingBatch(
        x=rows(1).tanh(), nearest=rows(2), matched=rows(3), partner=rows(4).tanh(), z=rows(5), corrupted=rows(6)
    )


def scores(y: Tensor) -> list[Tensor]:
    """A discriminator that prefers light pictures, above all in the middle."""
    return [y.mean((1, 2, 3)), y[:, :, 2:6, 2:6].mean((1, 2, 3))]


def stage(weights: Weights, *, clamp: float | None = None) -> Stage:
    return Stage(name="s", steps=1, lr=1.0, weights=weights, teacher_steps=2, tight_clamp=clamp)


def gradient(network: nn.Module, objective: Objective, batch: TrainingBatch) -> tuple[Tensor, dict[str, float]]:
    network.zero_grad()
    terms = objective.terms(network, network, batch)
    torch.autograd.backward(objective.total(terms))
    flat = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return flat, {name: float(value.detach()) for name, value in terms.items()}


class Small(nn.Module):
    """A map in float64 throughout; one that is no identity anywhere near."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 64), nn.Tanh()).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.reshape(x.shape)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(3)
    return Small()


@pytest.mark.parametrize("clamp", [None, 1e9])
def test_the_gradient_is_that_of_the_game(small: Small, batch: TrainingBatch, clamp: float | None) -> None:
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

    numeric, step = [], 1e-6
    for parameter in small.parameters():
        for i in range(0, parameter.numel(), 37):
            numeric.append(slope(parameter, i, step, value))
    picked = torch.cat([p.grad.flatten()[::37] for p in small.parameters() if p.grad is not None])
    torch.testing.assert_close(picked, torch.tensor(numeric, dtype=torch.float64), rtol=1e-5, atol=1e-9)
    assert len(ours) == sum(p.numel() for p in small.parameters())


def slope(parameter: Tensor, i: int, step: float, value: Callable[[], float]) -> float:
    flat = parameter.data.view(-1)
    flat[i] += step
    above = value()
    flat[i] -= 2 * step
    below = value()
    flat[i] += step
    return (above - below) / (2 * step)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_trains_alone(name: str, small: Small, batch: TrainingBatch) -> None:
    weights = Weights(**{term: float(term == name) for term in TERMS})
    teacher = copy.deepcopy(small).requires_grad_(False)
    objective = Objective(
        stage=stage(weights),
        kind="mse",
        teacher=teacher if name == "distill" else None,
        scores=scores if name == "critic" else None,
    )
    rows = {"imle": ["nearest"], "match": ["matched", "partner"], "project": ["corrupted"]}.get(name, ["z"])
    only = TrainingBatch(x=batch.x, **{row: getattr(batch, row) for row in rows})
    flat, terms = gradient(small, objective, only)
    assert set(terms) == {"rec", name}
    assert flat.abs().max() > 0


def test_all_terms_together_add_up(small: Small, batch: TrainingBatch) -> None:
    weights = Weights(**{term: float(i) for i, term in enumerate(TERMS, start=1)})
    teacher = copy.deepcopy(small).requires_grad_(False)
    objective = Objective(stage=stage(weights), kind="l1", teacher=teacher, scores=scores)
    terms = objective.terms(small, small, batch)
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
    x, z, corrupted = rows(1).float().tanh(), rows(5).float(), rows(6).float()
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


@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_every_term_of_features_trains_alone(name: str, network: Autoencoder, single: TrainingBatch) -> None:
    objective = feature_objective(network, Weights(rec=0.0, **{name: 1.0}))
    terms = objective.terms(network, network, single)
    torch.autograd.backward(objective.total(terms))
    assert max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None) > 0


def test_features_of_pictures_and_restored_pictures_are_compared(network: Autoencoder, single: TrainingBatch) -> None:
    objective = feature_objective(network, Weights(project=1.0, settle=1.0, drifting=1.0, features=1.0))
    terms = objective.terms(network, network, single)
    assert single.corrupted is not None
    outputs = [network(single.x), network(single.corrupted)]
    expected = [losses.feature_distance(network.features(y), network.features(single.x)) for y in outputs]
    torch.testing.assert_close(terms["features"], torch.stack(expected).mean())
    alone = feature_objective(network, Weights(project=1.0, settle=1.0, drifting=1.0))
    torch.testing.assert_close(terms["drifting"], alone.terms(network, network, single)["drifting"])


def test_drawings_after_f_are_sets_of_their_own(network: Autoencoder, single: TrainingBatch) -> None:
    """Each set repels its own samples only: joined, f(u) could be all of one kind and f(z) all of another."""
    objective = feature_objective(network, Weights(drifting=1.0, project_any=1.0))
    terms = objective.terms(network, network, single)
    assert single.drawings is not None
    assert single.drift_pictures is not None
    assert objective.feature_groups is not None
    groups = objective.feature_groups
    once = network(single.drawings)
    pictures, both = groups(single.drift_pictures), (once, network(once[::2]))
    first, second = (drifting_loss(groups(y), pictures) for y in both)
    torch.testing.assert_close(terms["project_any"], first + second / 2)
    without = objective.terms(network, network, dataclasses.replace(single, drawings=None))
    torch.testing.assert_close(terms["drifting"], without["drifting"])
    assert "project_any" not in without


def test_settle_takes_as_many_samples_as_there_are_pictures(small: Small, batch: TrainingBatch) -> None:
    assert batch.z is not None
    more = TrainingBatch(x=batch.x, z=torch.cat([batch.z, rows(9), rows(10)]))
    objective = Objective(stage=stage(Weights(settle=1.0)), kind="mse")
    y = small(batch.z)
    torch.testing.assert_close(
        objective.terms(small, small, more)["settle"], losses.distance(small(y), y, "mse").mean()
    )


def test_reconstruction_is_told_but_not_trained_where_it_is_off(small: Small, batch: TrainingBatch) -> None:
    weights = Weights(rec=0.0, imle=1.0)
    objective = Objective(stage=stage(weights), kind="mse")
    terms = objective.terms(small, small, TrainingBatch(x=batch.x, nearest=batch.nearest))
    assert float(objective.total(terms).detach()) == pytest.approx(float(terms["imle"].detach()))
    assert float(terms["rec"].detach()) > 0


@pytest.fixture
def teacher() -> Autoencoder:
    torch.manual_seed(0)
    config = NetworkConfig(size=16, channels=1, widths=(8, 12, 16), bottleneck=10)
    return Autoencoder(config).requires_grad_(False).eval()


@pytest.fixture
def pictures() -> Tensor:
    """Smooth ones."""
    noise = torch.randn((64, 1, 16, 16), generator=torch.Generator().manual_seed(1))
    return torch.tanh(4 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2))


@pytest.fixture
def samples() -> Tensor:
    """Rough ones."""
    return torch.randn((64, 1, 16, 16), generator=torch.Generator().manual_seed(2)).tanh()


@pytest.fixture
def critics(teacher: Autoencoder, pictures: Tensor) -> Critics:
    torch.manual_seed(3)
    return discriminator(teacher.features(pictures))


def test_there_is_a_score_for_every_scale_but_the_first(
    teacher: Autoencoder, critics: Critics, pictures: Tensor
) -> None:
    shapes = [tuple(feature.shape[1:]) for feature in teacher.features(pictures)]
    assert shapes == [(12, 4, 4), (16, 2, 2), (10, 1, 1)]
    assert [score.shape for score in critics(teacher.features(pictures))] == [(64,)] * 3
    assert not torch.equal(critics(teacher.features(pictures[:2]))[0], critics(teacher.features(pictures[2:4]))[0])
    for alone, among in zip(
        critics.eval()(teacher.features(pictures[3:4])), critics(teacher.features(pictures)), strict=True
    ):
        torch.testing.assert_close(alone[0], among[3])
    seen: list[Tensor] = []
    critics.heads[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    critics(teacher.features(pictures))
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)  # scaled by pictures
    torch.testing.assert_close(seen[0].std((0, 2, 3)), torch.ones(16))
    same = torch.zeros((4, 1, 16, 16))  # features without deviation do no harm
    assert all(bool(score.isfinite().all()) for score in discriminator(teacher.features(same))(teacher.features(same)))


def test_it_learns_to_distinguish_samples_and_its_gradient_raises_their_scores(
    teacher: Autoencoder, critics: Critics, pictures: Tensor, samples: Tensor
) -> None:
    trainer = CriticTrainer(critics, World(), peak=1e-2)
    for _ in range(60):
        trainer.step(teacher.features(pictures), teacher.features(samples))
    for real, fake in zip(critics(teacher.features(pictures)), critics(teacher.features(samples)), strict=True):
        assert float(real.mean()) > float(fake.mean()) + 0.3
    y = samples.clone().requires_grad_()
    before = sum(float(score.mean()) for score in trainer.critics(teacher.features(samples)))
    torch.autograd.backward(torch.stack(trainer.critics(teacher.features(y))).sum())
    assert y.grad is not None
    after = sum(float(score.mean()) for score in trainer.critics(teacher.features((y + y.grad.sign() / 20).detach())))
    assert after > before


def test_only_its_heads_learn_and_only_in_its_own_step(
    teacher: Autoencoder, critics: Critics, pictures: Tensor, samples: Tensor
) -> None:
    features = copy.deepcopy(teacher.state_dict())
    trainer = CriticTrainer(critics, World())
    before = copy.deepcopy(critics.state_dict())
    torch.autograd.backward(torch.stack(trainer.critics(teacher.features(samples.clone().requires_grad_()))).sum())
    assert all(torch.equal(before[name], now) for name, now in critics.state_dict().items())
    assert all(parameter.grad is None for parameter in (*critics.parameters(), *teacher.parameters()))
    trainer.lr = 0.0  # the rate of the step counts, not the first one
    trainer.step(teacher.features(pictures), teacher.features(samples))
    assert all(torch.equal(parameter, before[name]) for name, parameter in critics.named_parameters())
    trainer.lr = 1e-2
    trainer.step(teacher.features(pictures), teacher.features(samples))
    weights = {name: p for name, p in critics.named_parameters() if "weight" in name}
    assert len(weights) == 9
    assert not any(torch.equal(parameter, before[name]) for name, parameter in weights.items())
    assert all(torch.equal(features[name], now) for name, now in teacher.state_dict().items())
