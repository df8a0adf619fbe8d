"""Pairing of latents with pictures: the candidate pool of IMLE, and balanced one-to-one pairs."""

from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from model_export.data.noise import NoiseSampler
from model_export.training.distributed import World
from model_export.training.losses import Function
from model_export.training.stages import Matching

_CHUNK = 512  # latents in one forward pass: larger chunks are not faster on a CPU and need more memory
_SINGLE: Final = World()


class CandidatePool:
    """Latents with their outputs; every picture picks the latent whose output is nearest (IMLE).

    One pool serves several steps. Outputs that are a few steps old choose nearly as well as fresh ones, and a pool of
    thousands chooses much better than the few candidates that one step could afford.
    """

    def __init__(self, config: Matching, noise: NoiseSampler, world: World = _SINGLE) -> None:
        self._config = config
        self._noise = noise
        self._world = world
        self._latents: Tensor | None = None
        self._features = torch.empty(0)
        self._norms = torch.empty(0)

    @property
    def empty(self) -> bool:
        """Whether `refresh` has never been called."""
        return self._latents is None

    def refresh(self, f: Function, generator: torch.Generator) -> None:
        """Draw new latents and compute their outputs. Each rank computes its shard."""
        self._latents = self._noise.sample(self._config.pool, generator)
        self._features = output_features(f, self._latents, self._config.downsample, self._world)
        self._norms = self._features.square().sum(1)

    def nearest(self, x: Tensor) -> Tensor:
        """For each picture (B, C, H, W), the latent whose output has the least squared distance; same shape.

        With ``epsilon`` > 0, candidates are rejected whose output is nearer than epsilon (RMS per pixel) to any picture
        of the whole batch (RS-IMLE, arXiv 2409.17439). If that rejects all candidates, none is rejected.

        Raises:
            RuntimeError: the pool is empty; call `refresh` first.
        """
        if self._latents is None:
            raise RuntimeError("refresh the pool before using it")
        pictures = features(x, self._config.downsample)
        # In bfloat16 the rounding of the product would be as large as the distances between candidates.
        with torch.autocast(x.device.type, enabled=False):
            # ‖a − p‖² = ‖a‖² − 2a·p + ‖p‖². ‖p‖² is the same for all candidates a of a picture p, so only the
            # rejection below needs it.
            squared = self._norms - 2.0 * pictures @ self._features.T  # (B, pool)
        if self._config.epsilon > 0:
            full = squared + pictures.square().sum(1, keepdim=True)
            near = self._world.any((full < self._config.epsilon**2 * pictures.shape[1]).any(0))
            if not bool(near.all()):
                squared = squared.masked_fill(near, float("inf"))
        return self._latents[squared.argmin(1)]


class BalancedPairs:
    """Latents and pictures, paired one to one by an optimal assignment and handed out in batches.

    Every latent has a target and no picture is preferred, in contrast to `CandidatePool`.
    """

    def __init__(self, config: Matching, noise: NoiseSampler, world: World = _SINGLE) -> None:
        self._config = config
        self._noise = noise
        self._world = world
        self._latents = torch.empty(0)
        self._partners = torch.empty(0)

    @property
    def empty(self) -> bool:
        """Whether `refresh` has never been called."""
        return not len(self._latents)

    def refresh(self, f: Function, pictures: Tensor, generator: torch.Generator) -> None:
        """Pair M fresh latents with these M pictures (M, C, H, W) so that the total squared distance is least."""
        self._latents = self._noise.sample(len(pictures), generator)
        samples = output_features(f, self._latents, self._config.downsample, self._world)
        columns = torch.empty(len(pictures), dtype=torch.int64)
        # Rank 0 decides for all: two ranks whose costs differ in the last bit could find different assignments.
        if self._world.is_main:
            cost = torch.cdist(samples, features(pictures, self._config.downsample)).square()
            columns = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])
        self._partners = pictures[self._world.broadcast(columns.to(pictures.device))]

    def batch(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Batch number ``index`` since the refresh: latents and pictures, (size, C, H, W) each. Wraps around."""
        rows = torch.arange(index * size, (index + 1) * size, device=self._latents.device) % len(self._latents)
        return self._latents[rows], self._partners[rows]


def features(images: Tensor, downsample: int) -> Tensor:
    """The vectors to compare: pixels, or means over squares of this side. (B, C, H, W) → (B, D) float32."""
    if downsample > 1:
        images = functional.avg_pool2d(images, downsample)
    return images.float().flatten(1)


@torch.no_grad()
def output_features(f: Function, latents: Tensor, downsample: int, world: World = _SINGLE) -> Tensor:
    """`features` of f(z) for many latents, in chunks. The ranks share the work; every rank gets all (N, D) float32."""
    shard = [features(f(chunk), downsample) for chunk in torch.split(world.shard(latents), _CHUNK)]
    return world.all_gather(torch.cat(shard), len(latents))
