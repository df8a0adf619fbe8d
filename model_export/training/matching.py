"""Which latent answers for which picture: the IMLE candidate pool and balanced one-to-one pairs."""

from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from model_export.data.noise import NoiseSampler
from model_export.training.distributed import Ranks
from model_export.training.losses import Function
from model_export.training.presets import Matching

_CHUNK = 512  # of latents: as fast as any on a CPU, and little memory
_ALONE: Final = Ranks()


class CandidatePool:
    """Latents and their outputs, from which every picture picks the nearest.

    One pool serves several steps: outputs a few steps old choose nearly as well as fresh ones, and thousands of them
    choose far better than the handful a step could afford.
    """

    def __init__(self, config: Matching, noise: NoiseSampler, ranks: Ranks = _ALONE) -> None:
        self._config = config
        self._noise = noise
        self._ranks = ranks
        self._latents: Tensor | None = None
        self._features = torch.empty(0)
        self._norms = torch.empty(0)

    def refresh(self, f: Function, generator: torch.Generator) -> None:
        """Draw new latents and put them through f, each rank its share of them."""
        self._latents = self._noise.sample(self._config.pool, generator)
        self._features = outputs(f, self._latents, self._config.downsample, self._ranks)
        self._norms = self._features.square().sum(1)

    def nearest(self, x: Tensor) -> Tensor:
        """For each picture (B, C, H, W) the latent whose output is nearest in squared distance, same shape.

        With ``epsilon`` > 0, candidates nearer than that (RMS per pixel) to any picture of the batch, on whatever rank,
        are passed over (RS-IMLE, arXiv 2409.17439), unless none is left.
        """
        if self._latents is None:
            raise RuntimeError("refresh the pool before asking it")
        pictures = features(x, self._config.downsample)
        # In bfloat16 the rounding of a product would be as large as the distances between candidates.
        with torch.autocast(x.device.type, enabled=False):
            # ‖p‖² is the same for all candidates of a picture, so only the rejection needs it.
            squared = self._norms - 2.0 * pictures @ self._features.T  # (B, pool)
        if self._config.epsilon > 0:
            full = squared + pictures.square().sum(1, keepdim=True)
            near = self._ranks.any((full < self._config.epsilon**2 * pictures.shape[1]).any(0))
            if not bool(near.all()):
                squared = squared.masked_fill(near, float("inf"))
        return self._latents[squared.argmin(1)]


class BalancedPairs:
    """Latents and pictures paired by an optimal assignment, dealt out batch by batch."""

    def __init__(self, config: Matching, noise: NoiseSampler, ranks: Ranks = _ALONE) -> None:
        self._config = config
        self._noise = noise
        self._ranks = ranks
        self._latents = torch.empty(0)
        self._partners = torch.empty(0)

    def refresh(self, f: Function, pictures: Tensor, generator: torch.Generator) -> None:
        """Pair as many fresh latents with these pictures (M, C, H, W), least total squared distance."""
        self._latents = self._noise.sample(len(pictures), generator)
        samples = outputs(f, self._latents, self._config.downsample, self._ranks)
        columns = torch.empty(len(pictures), dtype=torch.int64)
        if self._ranks.main:
            cost = torch.cdist(samples, features(pictures, self._config.downsample)).square()
            columns = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])
        # One rank decides: two that differ in the last bit could pair differently.
        self._partners = pictures[self._ranks.from_main(columns.to(pictures.device))]

    def deal(self, turn: int, batch: int) -> tuple[Tensor, Tensor]:
        """The pairs of turn 0, 1, … since the refresh: latents and pictures, (batch, C, H, W) each."""
        index = torch.arange(turn * batch, (turn + 1) * batch, device=self._latents.device) % len(self._latents)
        return self._latents[index], self._partners[index]


def features(images: Tensor, downsample: int) -> Tensor:
    """What is compared: pixels, or averages over squares of side ``downsample``. (B, C, H, W) → (B, D) float32."""
    if downsample > 1:
        images = functional.avg_pool2d(images, downsample)
    return images.float().flatten(1)


@torch.no_grad()
def outputs(f: Function, latents: Tensor, downsample: int, ranks: Ranks = _ALONE) -> Tensor:
    """Features of f(z) for many latents, in chunks, the ranks sharing the work: (N, D) float32 on every rank."""
    own = [features(f(chunk), downsample) for chunk in torch.split(ranks.own(latents), _CHUNK)]
    return ranks.gather(torch.cat(own), len(latents))
