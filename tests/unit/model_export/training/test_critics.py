import pytest
import torch
from torch import Tensor

from model_export.training.critics import Adversary, CriticTrainer, FrechetLoss


def normal(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed))


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


def test_the_frechet_distance_of_pictures_to_themselves_is_zero() -> None:
    pictures = normal(500, 0)
    loss = FrechetLoss(pictures, pictures)
    assert float(loss(pictures)) == pytest.approx(0.0, abs=1e-3)
    assert float(FrechetLoss(pictures, pictures + 1.0)(pictures + 1.0)) == pytest.approx(
        6.0, rel=0.1
    )


@pytest.fixture
def examples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
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
