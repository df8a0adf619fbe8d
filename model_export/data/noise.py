"""Latents for training: standard normal, or with the frequency statistics of the data.

The distribution is that of `service.domain.latents.NoiseSource`. The random stream differs, because training does not
need every row to have its own seed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.domain.latents import FrequencyStatistics

_CHUNK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSampler:
    """Draws latents (N, C, H, W) float32."""

    shape: tuple[int, int, int]  # (C, H, W)
    # (4, C, H, W): mean and standard deviation of the real part, then of the imaginary part, for each frequency. None
    # stands for standard normal noise.
    statistics: Tensor | None = None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n latents on the generator's device."""
        device = generator.device
        if self.statistics is None:
            return torch.randn((n, *self.shape), generator=generator, device=device)
        real_mean, real_std, imag_mean, imag_std = self.statistics.to(device)
        normal = torch.randn((2, n, *self.shape), generator=generator, device=device)
        spectrum = torch.complex(real_mean + real_std * normal[0], imag_mean + imag_std * normal[1])
        image: Tensor = torch.fft.ifft2(spectrum).real
        return image.contiguous()

    def mean_norm(self, samples: int = 4096) -> float:
        """Mean Euclidean norm of a latent. It is √(C·H·W) for standard normal noise and estimated otherwise."""
        if self.statistics is None:
            return float(np.sqrt(np.prod(self.shape)))
        generator = torch.Generator().manual_seed(0)
        return float(self.sample(samples, generator).flatten(1).norm(dim=1).mean())

    def for_card(self) -> FrequencyStatistics | None:
        """The statistics in the form that the exported file stores."""
        if self.statistics is None:
            return None
        return FrequencyStatistics(*self.statistics.cpu().numpy().astype(np.float32))


def frequency_statistics(images: Tensor) -> Tensor:
    """Mean and deviation over pictures of the real and the imaginary part of their FFT2 (IGN paper, appendix).

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (4, C, H, W) float32: real mean, real deviation, imaginary mean, imaginary deviation, of pictures in [−1, 1].
    """
    total = torch.zeros((4, *images.shape[1:]), dtype=torch.float64)
    # Sums of values and of squares, chunk by chunk: the spectra of a whole data set would not fit into memory.
    for chunk in torch.split(images, _CHUNK):
        spectrum = torch.fft.fft2(chunk.double() / 127.5 - 1.0)
        for i, part in enumerate((spectrum.real, spectrum.imag)):
            total[2 * i] += part.sum(0)
            total[2 * i + 1] += part.square().sum(0)
    total /= len(images)
    for i in (0, 2):
        total[i + 1] = (total[i + 1] - total[i].square()).clamp_min(0).sqrt()
    return total.float()
