import numpy as np
import pytest
import torch
from torch import Tensor

from model_export.data.noise import NoiseSampler, frequency_statistics
from service.domain.latents import NoiseSource
from tests.helpers.tiny_training import patterns

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.from_numpy(patterns(300, 0)[0])[:, None]


def sample(noise: NoiseSampler, n: int, seed: int = 0) -> Tensor:
    return noise.sample(n, torch.Generator().manual_seed(seed))


def test_gaussian_noise_is_standard_normal() -> None:
    z = sample(NoiseSampler(SHAPE), 2000)
    assert z.shape == (2000, *SHAPE)
    assert z.dtype == torch.float32
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.std()) - 1.0) < 0.02


def test_the_generator_decides() -> None:
    noise = NoiseSampler(SHAPE)
    assert torch.equal(sample(noise, 3, seed=5), sample(noise, 3, seed=5))
    assert not torch.equal(sample(noise, 3, seed=5), sample(noise, 3, seed=6))


def test_statistics_are_those_of_the_spectra(pictures: Tensor) -> None:
    spectra = np.fft.fft2(pictures.numpy() / 127.5 - 1.0)
    expected = [spectra.real.mean(0), spectra.real.std(0), spectra.imag.mean(0), spectra.imag.std(0)]
    np.testing.assert_allclose(frequency_statistics(pictures).numpy(), np.stack(expected), atol=1e-4)


def test_frequency_noise_has_the_mean_picture_of_the_data(pictures: Tensor) -> None:
    z = sample(NoiseSampler(SHAPE, frequency_statistics(pictures)), 20_000)
    mean = (pictures.double() / 127.5 - 1.0).mean(0)
    assert (z.double().mean(0) - mean).abs().max() < 0.03


def test_training_and_serving_draw_from_the_same_distribution(pictures: Tensor) -> None:
    sampler = NoiseSampler(SHAPE, frequency_statistics(pictures))
    trained, served = sample(sampler, 4000).numpy(), NoiseSource(SHAPE, sampler.for_card()).rows(0, 0, 4000)
    np.testing.assert_allclose(trained.mean(0), served.mean(0), atol=0.06)
    np.testing.assert_allclose(trained.std(0), served.std(0), atol=0.06)


def test_mean_norm(pictures: Tensor) -> None:
    assert NoiseSampler(SHAPE).mean_norm() == 8.0
    assert NoiseSampler(SHAPE).for_card() is None
    noise = NoiseSampler(SHAPE, frequency_statistics(pictures))
    measured = float(sample(noise, 4000, seed=9).flatten(1).norm(dim=1).mean())
    assert noise.mean_norm() == pytest.approx(measured, rel=0.02)
