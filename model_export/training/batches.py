"""The rows of every training step.

Every random number is a function of (seed, stream, step), so a checkpoint needs no random state.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_export.data.corruptions import RandomCorruptions
from model_export.data.datasets import to_model_range
from model_export.data.noise import NoiseSampler
from model_export.training.distributed import World
from model_export.training.losses import Function
from model_export.training.matching import BalancedPairs, CandidatePool
from model_export.training.presets import Preset
from model_export.training.stages import Matching, Stage
from model_export.training.throughput import ThroughputMeter


class RngStream(IntEnum):
    """Independent streams of random numbers. The values are part of a run's reproducibility: never change one."""

    INIT = 0
    ORDER = 1
    NOISE = 2
    POOL = 3
    PAIRS = 4
    PAIR_PICTURES = 5
    CORRUPTION = 6
    SAMPLES = 7
    DISCRIMINATOR = 8
    CODE_NOISE = 9
    DRIFT_PICTURES = 10
    QUANTIZER = 13


def derive_seed(seed: int, stream: int, step: int) -> int:
    """Hash three numbers to a seed of 63 bits."""
    return int(np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBatch:
    """The rows of one step, (B, C, H, W) each; None if no active term needs them."""

    x: Tensor  # pictures
    nearest: Tensor | None = None
    matched: Tensor | None = None  # latents of balanced pairs
    partner: Tensor | None = None  # the pictures they are paired with
    z: Tensor | None = None  # fresh latents
    corrupted: Tensor | None = None  # corrupted copies of x
    code_noise: Tensor | None = None  # standard normal, for every row of x, z and corrupted
    drift_pictures: Tensor | None = None  # pictures that attract the samples

    def split(self, parts: int) -> list["TrainingBatch"]:
        """Split into micro-batches of equal size.

        Terms that need the whole batch (`Weights.whole_batch`) allow one part only.
        """
        if parts == 1:
            return [self]
        rows = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        chunks: dict[str, Any] = {name: torch.chunk(value, parts) for name, value in rows.items()}
        return [TrainingBatch(**{name: chunk[i] for name, chunk in chunks.items()}) for i in range(parts)]


class BatchBuilder:
    """Builds this rank's rows for any step. It refreshes the pool and the pairs at the steps where they are due.

    Args:
        pictures: (N, C, H, W) uint8, on the device to compute on.
    """

    def __init__(
        self, preset: Preset, pictures: Tensor, noise: NoiseSampler, *, seed: int, meter: ThroughputMeter, world: World
    ) -> None:
        self._preset, self._pictures, self._noise, self._seed = preset, pictures, noise, seed
        self._meter, self._world = meter, world
        self._corruptions = RandomCorruptions(
            names=preset.corruptions, noise_range=preset.noise_range, eight_bit=preset.eight_bit
        )
        self._set_matching(preset.matching)
        self._epoch, self._permutation = -1, torch.empty(0)
        self.size = min(preset.batch, len(pictures))

    def build(self, step: int, stage_step: int, stage: Stage, f: Function) -> TrainingBatch:
        """Build this rank's rows.

        Args:
            step: step of the run; it seeds the random numbers.
            stage_step: step of the stage; pool and pairs are refreshed at multiples of their intervals.
        """
        weights, shard = stage.weights, self._world.shard
        matching = self._preset.matching_of(stage)
        if matching != self._matching:
            self._set_matching(matching)
        nearest = matched = partner = z = corrupted = None
        with self._meter.phase("data"):
            x = to_model_range(self._pictures[shard(self.picture_indices(step)).to(self._pictures.device)])
        if weights.imle > 0:
            with self._meter.phase("pool"):
                if stage_step % matching.pool_refresh == 0 or self._pool.empty:
                    self._pool.refresh(f, self.generator(RngStream.POOL, step))
                nearest = self._pool.nearest(x)
        if weights.match > 0:
            with self._meter.phase("pairs"):
                index = stage_step % matching.pairs_refresh
                if index == 0 or self._pairs.empty:
                    pictures = self.random_pictures(matching.pairs, RngStream.PAIR_PICTURES, step)
                    self._pairs.refresh(f, pictures, self.generator(RngStream.PAIRS, step))
                matched, partner = map(shard, self._pairs.batch(index, self.size))
        # The random numbers below are drawn for the whole batch, then sharded: the result does not depend on the
        # number of ranks.
        with self._meter.phase("data"):
            if weights.latents:
                z = shard(self._noise.sample(self._sample_count(stage), self.generator(RngStream.NOISE, step)))
            if weights.project > 0:
                generator = self.generator(RngStream.CORRUPTION, step)
                draws = self._corruptions.draw(self.size, self._preset.shape, generator)
                corrupted = self._corruptions.apply(x, draws.map(shard))
            rows = sum(len(part) for part in (x, z, corrupted) if part is not None)
            code_noise, drift_pictures = self._code_noise(step, stage, rows), self._drift_pictures(step, stage)
        return TrainingBatch(
            x=x,
            nearest=nearest,
            matched=matched,
            partner=partner,
            z=z,
            corrupted=corrupted,
            code_noise=code_noise,
            drift_pictures=drift_pictures,
        )

    def picture_indices(self, step: int) -> Tensor:
        """Indices of a step's pictures (B,). Every epoch is a permutation; its incomplete last batch is dropped."""
        count = len(self._pictures)
        epoch, position = divmod(step, count // self.size)
        if self._epoch != epoch:
            generator = np.random.default_rng(derive_seed(self._seed, RngStream.ORDER, epoch))
            self._epoch, self._permutation = epoch, torch.from_numpy(generator.permutation(count))
        return self._permutation[position * self.size : (position + 1) * self.size]

    def generator(self, stream: RngStream, step: int) -> torch.Generator:
        """The generator of a stream at a step, on the device of the pictures; the same on every rank."""
        return torch.Generator(self._pictures.device).manual_seed(derive_seed(self._seed, stream, step))

    def random_pictures(self, count: int, stream: RngStream, step: int) -> Tensor:
        """Random pictures without repetition, at most as many as there are: (count, C, H, W) in [−1, 1]."""
        generator = np.random.default_rng(derive_seed(self._seed, stream, step))
        count = min(count, len(self._pictures))
        chosen = torch.from_numpy(generator.choice(len(self._pictures), count, replace=False))
        return to_model_range(self._pictures[chosen.to(self._pictures.device)])

    def _sample_count(self, stage: Stage) -> int:
        """Number of fresh latents."""
        return stage.drift_pictures if stage.weights.drifting > 0 and stage.drift_pictures else self.size

    def _code_noise(self, step: int, stage: Stage, rows: int) -> Tensor | None:
        """Standard normal for as many rows as f gets in the step, or None if the stage adds no noise."""
        if stage.weights.code_consistency <= 0 or stage.code_noise <= 0:
            return None
        generator = self.generator(RngStream.CODE_NOISE, step)
        return torch.randn((rows, *self._preset.shape), generator=generator, device=self._pictures.device)

    def _drift_pictures(self, step: int, stage: Stage) -> Tensor | None:
        if stage.weights.drifting <= 0:
            return None
        return self.random_pictures(self._sample_count(stage), RngStream.DRIFT_PICTURES, step)

    def _set_matching(self, matching: Matching) -> None:
        self._matching = matching
        self._pool = CandidatePool(matching, self._noise, self._world)
        self._pairs = BalancedPairs(matching, self._noise, self._world)
