import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from model_export.data.datasets import Dataset
from model_export.training.batches import TrainingBatch
from model_export.training.crisp import FORMS, Crisp
from model_export.training.crisp_objective import CrispObjective, code_drifting, new_adversary
from model_export.training.critics import Adversary, CriticTrainer, FrechetLoss
from model_export.training.drifting import drifting_loss
from model_export.training.network import Dense, NetworkConfig
from model_export.training.perceptual import PerceptualNetwork, fit, new_network
from model_export.training.stages import crisp_stages
from tests.unit.model_export.conftest import seeded

SMALL = {"size": 16, "channels": 3, "widths": (8, 16), "bottleneck": 6, "palette": 5}


def crisp(**changes: Any) -> Crisp:
    """A network as `--channels-last` lays it out, which not every view of a tensor can take."""
    torch.manual_seed(0)
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    return Crisp(NetworkConfig(**{**SMALL, **changes})).to(**layout)


@pytest.mark.parametrize(("logit", "part"), [(-40.0, "invent"), (40.0, "read")])
def test_the_gate_decides_which_code_is_drawn(logit: float, part: str) -> None:
    """Everything passes the code: with the one of the gate's choice gone, nothing of the input is
    left.
    """
    f = crisp()
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
    f = crisp()
    numbers = f.invent.numbers(torch.randn(500, 3, 16, 16))
    assert numbers.shape[1:] == f.numbers
    covariance = torch.cov(numbers.flatten(1).T)
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), atol=0.3, rtol=0.0)


def test_parts_of_invented_codes_become_those_of_pictures() -> None:
    torch.manual_seed(0)
    f = crisp(parts=((1, 0, 2, 3),))
    x = torch.rand(FORMS, 3, 16, 16) * 2 - 1
    z = torch.randn(50, *f.numbers)
    before = f.invented(z)
    torch.testing.assert_close(before, torch.tanh(f.invent(z)))
    f.fit_parts(x)
    after = f.invented(z)
    # As many forms as pictures: each is one of them.
    forms = f.code(x)[0][:, :, 1:3, :3].flatten(1)
    part = after[:, :, 1:3, :3].flatten(1)
    nearest = torch.cdist(before[:, :, 1:3, :3].flatten(1), forms).argmin(1)
    change = (part - forms[nearest]).square().mean(1)
    assert change.median() < 1e-3
    around = torch.ones(4, 4, dtype=torch.bool)
    around[1:3, :3] = False
    torch.testing.assert_close(after[:, :, around], before[:, :, around])


AUTOENCODER, DRIFTING, JOINT = crisp_stages(1, 1, 1)


def pictures(count: int, seed: int) -> Tensor:
    noise = torch.randn((count, 3, 16, 16), generator=seeded(seed))
    return torch.tanh(4 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2))


@pytest.fixture
def network() -> Crisp:
    torch.manual_seed(0)
    return Crisp(NetworkConfig(size=16, channels=3, widths=(8, 16), bottleneck=4, palette=4))


@pytest.fixture
def reader() -> PerceptualNetwork:
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
        generator=seeded(8),
    )


@pytest.fixture
def joint(network: Crisp, reader: PerceptualNetwork) -> CrispObjective:
    adversary = new_adversary(network, reader, pictures(40, 9), seeded(10))
    trainer = CriticTrainer(adversary)
    return CrispObjective(
        network=network, stage=JOINT, kind="mse_edges", perceptual=reader, trainer=trainer
    )


def trained(
    objective: CrispObjective, batch: TrainingBatch, *, bf16: bool = False
) -> tuple[set[str], dict[str, Tensor]]:
    """The parts of the network that learn, and the terms."""
    objective.network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = objective.loss(objective.network, batch)
    torch.autograd.backward(loss.total)
    moved = {
        name
        for name, p in objective.network.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    return {name.partition(".")[0] for name in moved}, loss.terms


def test_the_first_stages_train_one_way_to_the_code_each(
    network: Crisp, reader: PerceptualNetwork, batch: TrainingBatch
) -> None:
    first, second = (
        CrispObjective(network=network, stage=stage, kind="mse_edges", perceptual=reader)
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
    assert float(terms["second"]) > 0


def test_squares_of_a_code_overlap_where_they_do_not_fill_it() -> None:
    codes, pictures = (torch.randn((6, 2, 3, 3), generator=seeded(seed)) for seed in (0, 1))
    total = torch.zeros(())
    for side, weight in ((3, 1.0), (2, 1.0), (1, 0.5)):
        places = range(4 - side)
        parts = (
            [each[:, :, i : i + side, j : j + side].flatten(1) for i in places for j in places]
            for each in (codes, pictures)
        )
        total = total + weight * drifting_loss(*parts)
    torch.testing.assert_close(code_drifting(codes, pictures), total)


def normal(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn((count, width), generator=seeded(seed))


def test_the_frechet_loss_moves_samples_to_the_distribution_of_pictures() -> None:
    pictures = normal(2000, 0) @ normal(6, 1) + 2.0
    samples = normal(200, 2).requires_grad_()
    loss = FrechetLoss(pictures, samples.detach())
    optimiser = torch.optim.Adam([samples], 0.02)
    values = []
    for _ in range(400):
        value = loss(samples)
        optimiser.zero_grad()
        torch.autograd.backward(value)
        optimiser.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.02 * values[0]
    torch.testing.assert_close(samples.detach().mean(0), pictures.mean(0), atol=0.3, rtol=0.0)


@pytest.fixture
def examples() -> list[Tensor]:
    generator = seeded(3)
    shapes = ((3, 32, 32), (40, 8, 8), (6,))
    return [torch.randn((24, *shape), generator=generator) for shape in shapes]


def test_critics_learn_places_and_how_far_samples_are_apart(examples: list[Tensor]) -> None:
    torch.manual_seed(0)
    trainer = CriticTrainer(Adversary(examples, []), peak=1e-2)
    moved = examples[1].clone()
    moved[:, :, 0, 0] = 2.0
    moved[:, :, 7, 7] = -2.0
    pictures = [examples[0], moved, examples[2]]
    # Samples have the same values at other places, or are nearly equal.
    samples = [examples[0], moved.flip(2, 3), examples[2][:1] + 0.01 * examples[2]]
    for _ in range(60):
        trainer.step(pictures, samples)
    real, fake = (trainer.critics(views) for views in (pictures, samples))
    assert [score.shape for score in real] == [(24,)] * 3
    assert float(real[1].mean() - fake[1].mean()) > 1.0
    assert float(real[2].mean() - fake[2].mean()) > 1.0
    assert all(score.shape == (7,) for score in trainer.critics([view[:7] for view in pictures]))


CPU = torch.device("cpu")


def corners(count: int) -> Dataset:
    """Noisy pictures 16×16 with a bright square of 5 pixels in one of four corners, which is the
    label.
    """
    generator = seeded(0)
    pictures = torch.randint(0, 60, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    corner = torch.arange(count) % 4
    for picture, place in zip(pictures, corner, strict=True):
        down, right = divmod(int(place), 2)
        picture[:, 9 * down + 1 : 9 * down + 6, 9 * right + 1 : 9 * right + 6] = 230
    return Dataset(
        name="corners",
        sha256="",
        licence="",
        train=pictures,
        held_out=pictures[:40],
        train_labels=corner,
        held_out_labels=corner[:40],
    )


def negative(x: Tensor, _: torch.Generator) -> Tensor:
    return -x


def fitted(data: Dataset, seed: int = 0) -> PerceptualNetwork:
    torch.manual_seed(seed)
    network = new_network(data)
    fit(network, data, seed, CPU, negative, steps=40)
    return network


def test_it_tells_pictures_from_drawings() -> None:
    data = corners(200)
    network = fitted(data)
    x = data.held_out / 127.5 - 1
    labels, drawn = network(torch.cat([x, -x])).split(network.heads, 1)
    assert network.heads == (4, 2)
    assert (labels[:40].argmax(1) == data.held_out_labels).float().mean() > 0.9
    assert drawn.argmax(1).tolist() == [0] * 40 + [1] * 40
