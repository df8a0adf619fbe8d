"""What a stage creates from pictures when it starts: discriminator and fitted quantiser."""

import numpy as np
import torch
from torch import Tensor

from model_export.data.datasets import to_model_range
from model_export.data.noise import NoiseSampler
from model_export.training.batches import RngStream, derive_seed
from model_export.training.discriminator import SCALING_PICTURES, Discriminator, DiscriminatorTrainer
from model_export.training.distributed import World
from model_export.training.network import Autoencoder
from model_export.training.stages import Stage

_QUANTIZER_PICTURES = 4096  # pictures, and latents, whose codes give the principal components


class StageSetup:
    """Creates the parts of a stage.

    Args:
        pictures: all training pictures, (N, C, H, W) uint8.
    """

    def __init__(self, pictures: Tensor, noise: NoiseSampler, *, seed: int, device: torch.device, world: World) -> None:
        self._pictures, self._noise, self._seed, self._device, self._world = pictures, noise, seed, device, world

    def discriminator(self, stage: Stage, teacher: Autoencoder | None, step: int) -> DiscriminatorTrainer | None:
        """A new discriminator on the teacher's features, or None if the stage has none. ``step``: of the run."""
        if teacher is None or stage.weights.critic <= 0:
            return None
        torch.manual_seed(derive_seed(self._seed, RngStream.DISCRIMINATOR, step))
        pictures = self._example_pictures(min(SCALING_PICTURES, len(self._pictures)))
        return DiscriminatorTrainer(Discriminator(teacher.features, pictures), stage.critic_lr, self._world)

    def fit_quantizer(self, stage: Stage, network: Autoencoder) -> None:
        """Fit the network's quantiser to pictures, if the stage says so."""
        if stage.quantizer_deviation > 0:
            generator = torch.Generator(self._device).manual_seed(derive_seed(self._seed, RngStream.QUANTIZER, 0))
            latents = self._noise.sample(_QUANTIZER_PICTURES, generator)
            pictures = self._example_pictures(_QUANTIZER_PICTURES)
            network.fit_quantizer(pictures, latents, stage.quantizer_deviation, generator)

    def _example_pictures(self, count: int) -> Tensor:
        """Random pictures, the same for every stage: (count, C, H, W) in [−1, 1]. Few pictures are repeated."""
        order = np.random.default_rng(self._seed).permutation(len(self._pictures))
        return to_model_range(self._pictures[torch.from_numpy(np.resize(order, count))].to(self._device))
