import copy

import pytest
import torch
from torch import Tensor

from model_export.training.objective import Discriminator, DiscriminatorTrainer
from model_export.training.execution import World
from model_export.training.network import Autoencoder, NetworkConfig

FULL = torch.autocast("cpu", torch.bfloat16, enabled=False)


@pytest.fixture
def teacher() -> Autoencoder:
    torch.manual_seed(0)
    config = NetworkConfig(size=16, channels=1, widths=(8, 12, 16), bottleneck=10, groups=4)
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
def discriminator(teacher: Autoencoder, pictures: Tensor) -> Discriminator:
    torch.manual_seed(3)
    return Discriminator(teacher.features, pictures)


def test_there_is_a_score_for_every_scale_but_the_first(
    teacher: Autoencoder, discriminator: Discriminator, pictures: Tensor
) -> None:
    shapes = [tuple(feature.shape[1:]) for feature in teacher.features(pictures)]
    assert shapes == [(12, 4, 4), (16, 2, 2), (10, 1, 1)]
    assert [tuple(feature.shape[1:]) for feature in teacher.features(pictures, first=0)[1:]] == shapes
    assert [score.shape for score in discriminator(pictures)] == [(64,)] * 3
    assert not torch.equal(discriminator(pictures[:2])[0], discriminator(pictures[2:4])[0])


def test_a_score_is_a_function_of_its_own_picture(discriminator: Discriminator, pictures: Tensor) -> None:
    for alone, among in zip(discriminator.eval()(pictures[3:4]), discriminator(pictures), strict=True):
        torch.testing.assert_close(alone[0], among[3])


def test_features_are_scaled_by_pictures(teacher: Autoencoder, pictures: Tensor) -> None:
    discriminator = Discriminator(teacher.features, pictures)
    seen: list[Tensor] = []
    discriminator.heads[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    discriminator(pictures)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].std((0, 2, 3)), torch.ones(16))


def test_it_learns_to_distinguish_samples_and_its_gradient_raises_their_scores(
    discriminator: Discriminator, pictures: Tensor, samples: Tensor
) -> None:
    trainer = DiscriminatorTrainer(discriminator, 1e-2, World())
    for _ in range(60):
        trainer.step(pictures, samples, 1e-2, FULL)
    for real, fake in zip(discriminator(pictures), discriminator(samples), strict=True):
        assert float(real.mean()) > 0.2 > -0.2 > float(fake.mean())
    y = samples.clone().requires_grad_()
    before = sum(float(score.mean()) for score in trainer.scores(samples))
    torch.autograd.backward(torch.stack(trainer.scores(y)).sum())
    assert y.grad is not None
    after = sum(float(score.mean()) for score in trainer.scores((y + y.grad.sign() / 20).detach()))
    assert after > before


def test_only_its_heads_learn_and_only_in_its_own_step(
    teacher: Autoencoder, discriminator: Discriminator, pictures: Tensor, samples: Tensor
) -> None:
    features = copy.deepcopy(teacher.state_dict())
    trainer = DiscriminatorTrainer(discriminator, 1e-2, World())
    before = copy.deepcopy(discriminator.state_dict())
    torch.autograd.backward(torch.stack(trainer.scores(samples.clone().requires_grad_())).sum())
    assert all(torch.equal(before[name], now) for name, now in discriminator.state_dict().items())
    assert all(parameter.grad is None for parameter in (*discriminator.parameters(), *teacher.parameters()))
    trainer.step(pictures, samples, 0.0, FULL)  # the rate of the step counts, not the first one
    assert all(torch.equal(parameter, before[name]) for name, parameter in discriminator.named_parameters())
    trainer.step(pictures, samples, 1e-2, FULL)
    weights = {name: p for name, p in discriminator.named_parameters() if "weight" in name}
    assert len(weights) == 9
    assert not any(torch.equal(parameter, before[name]) for name, parameter in weights.items())
    assert all(torch.equal(features[name], now) for name, now in teacher.state_dict().items())


def test_its_state_can_be_restored(teacher: Autoencoder, pictures: Tensor, samples: Tensor) -> None:
    one = DiscriminatorTrainer(Discriminator(teacher.features, pictures), 1e-2, World())
    one.step(pictures, samples, 1e-2, FULL)
    other = DiscriminatorTrainer(Discriminator(teacher.features, pictures[:9]), 1e-2, World())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for trainer in (one, other):
        trainer.step(pictures, samples, 1e-2, FULL)
    for a, b in zip(one.scores(samples), other.scores(samples), strict=True):
        assert torch.equal(a, b)


def test_features_without_deviation_do_no_harm(teacher: Autoencoder) -> None:
    same = torch.zeros((4, 1, 16, 16))
    discriminator = Discriminator(teacher.features, same)
    assert all(bool(score.isfinite().all()) for score in discriminator(same))
