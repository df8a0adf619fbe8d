"""Latents for training: standard normal, or with the data's frequency statistics.

The distribution is that of `service.domain.latents.NoiseSource`; the stream is not (training needs no seeded rows).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.domain.latents import FrequencyStatistics

_CHUNK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSampler:
    """Draws latents (n, C, H, W) float32.

    Args:
        shape: (C, H, W).
        statistics: (4, C, H, W) real mean, real std, imaginary mean, imaginary std per frequency; None = N(0, 1).
    """

    shape: tuple[int, int, int]
    statistics: Tensor | None = None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """N latents on the generator's device."""
        device = generator.device
        if self.statistics is None:
            return torch.randn((n, *self.shape), generator=generator, device=device)
        real_mean, real_std, imag_mean, imag_std = self.statistics.to(device)
        normal = torch.randn((2, n, *self.shape), generator=generator, device=device)
        spectrum = torch.complex(real_mean + real_std * normal[0], imag_mean + imag_std * normal[1])
        image: Tensor = torch.fft.ifft2(spectrum).real
        return image.contiguous()

    def mean_norm(self, samples: int = 4096) -> float:
        """Mean Euclidean norm of a latent; √(C·H·W) for standard normal noise."""
        if self.statistics is None:
            return float(np.sqrt(np.prod(self.shape)))
        generator = torch.Generator().manual_seed(0)
        return float(self.sample(samples, generator).flatten(1).norm(dim=1).mean())

    def for_card(self) -> FrequencyStatistics | None:
        """The statistics as the exported file carries them."""
        if self.statistics is None:
            return None
        return FrequencyStatistics(*self.statistics.cpu().numpy().astype(np.float32))


def frequency_statistics(images: Tensor) -> Tensor:
    """Mean and std over pictures of the real and the imaginary part of FFT2 (Shocher et al., 2024, appendix).

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (4, C, H, W) float32: real mean, real std, imaginary mean, imaginary std, of pictures in [−1, 1].
    """
    total = torch.zeros((4, *images.shape[1:]), dtype=torch.float64)
    for chunk in torch.split(images, _CHUNK):
        spectrum = torch.fft.fft2(chunk.double() / 127.5 - 1.0)
        for i, part in enumerate((spectrum.real, spectrum.imag)):
            total[2 * i] += part.sum(0)
            total[2 * i + 1] += part.square().sum(0)
    total /= len(images)
    for i in (0, 2):
        total[i + 1] = (total[i + 1] - total[i].square()).clamp_min(0).sqrt()
    return total.float()
