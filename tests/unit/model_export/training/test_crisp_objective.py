import dataclasses

import pytest
import torch
from torch import Tensor

from model_export.training.batches import TrainingBatch
from model_export.training.crisp import Crisp
from model_export.training.crisp_objective import CrispObjective, code_drifting, new_adversary
from model_export.training.critics import CriticTrainer
from model_export.training.drifting import drifting_loss
from model_export.training.network import NetworkConfig
from model_export.training.perceptual import PerceptualNetwork
from model_export.training.stages import crisp_stages

AUTOENCODER, DRIFTING, JOINT = crisp_stages(1, 1, 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, seed: int) -> Tensor:
    noise = torch.randn((count, 3, 16, 16), generator=generator(seed))
    return torch.tanh(4 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2))


@pytest.fixture
def network() -> Crisp:
    torch.manual_seed(0)
    return Crisp(NetworkConfig(size=16, channels=3, widths=(8, 16), bottleneck=4, palette=4))


@pytest.fixture
def perceptual() -> PerceptualNetwork:
    torch.manual_seed(1)
    return PerceptualNetwork(3, 16, (4, 2)).requires_grad_(False).eval()


@pytest.fixture
def batch() -> TrainingBatch:
    return TrainingBatch(
        x=pictures(12, 1),
        corrupted=pictures(12, 2),
        drift_pictures=pictures(20, 3),
        drawings=pictures(4, 4),
        drawn=pictures(2, 5),
        fitting=torch.stack([pictures(3, 6), pictures(3, 7)]),
        sketched=torch.arange(12) >= 8,
        generator=generator(8),
    )


@pytest.fixture
def joint(network: Crisp, perceptual: PerceptualNetwork) -> CrispObjective:
    adversary = new_adversary(network, perceptual, pictures(40, 9), generator(10))
    trainer = CriticTrainer(adversary)
    return CrispObjective(
        network=network, stage=JOINT, kind="mse_edges", perceptual=perceptual, trainer=trainer
    )


def trained(
    objective: CrispObjective, batch: TrainingBatch, *, bf16: bool = False
) -> tuple[set[str], dict[str, Tensor]]:
    """The parts of the network that learn, and the terms."""
    objective.network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        terms = objective.terms(objective.network, batch)
    torch.autograd.backward(objective.total(terms))
    moved = {
        name
        for name, p in objective.network.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    return {name.partition(".")[0] for name in moved}, terms


def test_the_first_stages_train_one_way_to_the_code_each(
    network: Crisp, perceptual: PerceptualNetwork, batch: TrainingBatch
) -> None:
    first, second = (
        CrispObjective(network=network, stage=stage, kind="mse_edges", perceptual=perceptual)
        for stage in (AUTOENCODER, DRIFTING)
    )
    parts, terms = trained(first, dataclasses.replace(batch, drift_pictures=None))
    assert (parts, set(terms)) == ({"read", "draw"}, {"project", "features", "gate", "fitting"})
    parts, terms = trained(second, TrainingBatch(x=batch.x, drift_pictures=batch.drift_pictures))
    assert (parts, set(terms)) == ({"invent"}, {"code_drifting"})


@pytest.mark.parametrize("bf16", [False, True])
def test_the_joint_stage_trains_everything_and_its_critics(
    joint: CrispObjective, batch: TrainingBatch, *, bf16: bool
) -> None:
    assert joint.trainer is not None
    before = {name: p.clone() for name, p in joint.trainer.critics.heads.named_parameters()}
    parts, terms = trained(joint, batch, bf16=bf16)
    assert parts == {"read", "invent", "draw"}
    assert set(terms) == {
        "project",
        "features",
        "gate",
        "fitting",
        "critic",
        "code_critic",
        "frechet",
        "code_drifting",
    }
    assert all(bool(term.isfinite()) for term in terms.values())
    after = dict(joint.trainer.critics.heads.named_parameters())
    assert not any(torch.equal(before[name], after[name]) for name in before if "weight" in name)
    # f(z) learns from f(f(z)) late only
    _, terms = trained(joint, dataclasses.replace(batch, progress=0.7))
    assert float(terms["second"].detach()) > 0


def test_squares_of_a_code_overlap_where_they_do_not_fill_it() -> None:
    codes, pictures = (torch.randn((6, 2, 3, 3), generator=generator(seed)) for seed in (0, 1))
    total = torch.zeros(())
    for side, weight in ((3, 1.0), (2, 1.0), (1, 0.5)):
        places = range(4 - side)
        parts = (
            [each[:, :, i : i + side, j : j + side].flatten(1) for i in places for j in places]
            for each in (codes, pictures)
        )
        total = total + weight * drifting_loss(*parts)
    torch.testing.assert_close(code_drifting(codes, pictures), total)
