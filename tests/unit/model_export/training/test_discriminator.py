import copy

import pytest
import torch
from torch import Tensor

from model_export.training.discriminator import Discriminator, DiscriminatorTrainer
from model_export.training.distributed import World
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
def critic(teacher: Autoencoder, pictures: Tensor) -> Discriminator:
    torch.manual_seed(3)
    return Discriminator(teacher.features, pictures)


def test_there_is_a_score_for_every_scale_but_the_first(critic: Discriminator, pictures: Tensor) -> None:
    shapes = [tuple(code.shape[1:]) for code in critic._features(pictures)]
    assert shapes == [(12, 4, 4), (16, 2, 2), (10, 1, 1)]
    assert [score.shape for score in critic(pictures)] == [(64,)] * 3
    assert not torch.equal(critic(pictures[:2])[0], critic(pictures[2:4])[0])


def test_a_score_is_a_function_of_its_own_picture(critic: Discriminator, pictures: Tensor) -> None:
    for alone, among in zip(critic.eval()(pictures[3:4]), critic(pictures), strict=True):
        torch.testing.assert_close(alone[0], among[3])


def test_features_are_scaled_by_pictures(teacher: Autoencoder, pictures: Tensor) -> None:
    critic = Discriminator(teacher.features, pictures)
    seen: list[Tensor] = []
    critic.heads[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    critic(pictures)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].std((0, 2, 3)), torch.ones(16))


def test_it_learns_to_tell_samples_from_pictures_and_teaches_what_pictures_have(
    critic: Discriminator, pictures: Tensor, samples: Tensor
) -> None:
    opponent = DiscriminatorTrainer(critic, 1e-2, World())
    for _ in range(60):
        opponent.step(pictures, samples, 1e-2, FULL)
    for real, fake in zip(critic(pictures), critic(samples), strict=True):
        assert float(real.mean()) > 0.2 > -0.2 > float(fake.mean())
    y = samples.clone().requires_grad_()
    before = sum(float(score.mean()) for score in opponent.scores(samples))
    torch.autograd.backward(torch.stack(opponent.scores(y)).sum())
    assert y.grad is not None
    after = sum(float(score.mean()) for score in opponent.scores((y + y.grad.sign() / 20).detach()))
    assert after > before


def test_only_its_heads_learn_and_only_when_they_are_told_to(
    teacher: Autoencoder, critic: Discriminator, pictures: Tensor, samples: Tensor
) -> None:
    features = copy.deepcopy(teacher.state_dict())
    opponent = DiscriminatorTrainer(critic, 1e-2, World())
    before = copy.deepcopy(critic.state_dict())
    torch.autograd.backward(torch.stack(opponent.scores(samples.clone().requires_grad_())).sum())
    assert all(torch.equal(before[name], now) for name, now in critic.state_dict().items())
    assert all(parameter.grad is None for parameter in (*critic.parameters(), *teacher.parameters()))
    opponent.step(pictures, samples, 0.0, FULL)  # the rate is that of the step, not the first one
    assert all(torch.equal(parameter, before[name]) for name, parameter in critic.named_parameters())
    opponent.step(pictures, samples, 1e-2, FULL)
    weights = {name: p for name, p in critic.named_parameters() if "weight" in name}
    assert len(weights) == 9
    assert not any(torch.equal(parameter, before[name]) for name, parameter in weights.items())
    assert all(torch.equal(features[name], now) for name, now in teacher.state_dict().items())


def test_it_goes_on_from_what_a_checkpoint_keeps(teacher: Autoencoder, pictures: Tensor, samples: Tensor) -> None:
    one = DiscriminatorTrainer(Discriminator(teacher.features, pictures), 1e-2, World())
    one.step(pictures, samples, 1e-2, FULL)
    other = DiscriminatorTrainer(Discriminator(teacher.features, pictures[:9]), 1e-2, World())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for opponent in (one, other):
        opponent.step(pictures, samples, 1e-2, FULL)
    for a, b in zip(one.scores(samples), other.scores(samples), strict=True):
        assert torch.equal(a, b)


def test_features_without_deviation_do_no_harm(teacher: Autoencoder) -> None:
    same = torch.zeros((4, 1, 16, 16))
    critic = Discriminator(teacher.features, same)
    assert all(bool(score.isfinite().all()) for score in critic(same))
