"""What every step is computed from. Each draw is a function of (seed, stream, step), so there is no state to save."""

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from model_export.data import corruptions
from model_export.data.datasets import to_model_range
from model_export.data.noise import NoiseSampler
from model_export.training.distributed import Ranks
from model_export.training.losses import Function
from model_export.training.matching import BalancedPairs, CandidatePool
from model_export.training.presets import Matching, Preset, Stage
from model_export.training.throughput import Clock


class Stream(IntEnum):
    """Independent streams of randomness."""

    INIT = 0
    ORDER = 1
    NOISE = 2
    POOL = 3
    PAIRS = 4
    PARTNERS = 5
    DEGRADE = 6
    GRID = 7
    CRITIC = 8


def mixed_seed(seed: int, stream: int, step: int) -> int:
    """63 well-mixed bits from three numbers."""
    return int(np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows of one step, (B, C, H, W) each; None where no term asks for them.

    Args:
        x: pictures.
        nearest: for each picture the latent whose output is nearest.
        matched, partner: latents, and the pictures they are paired with.
        z: fresh latents.
        degraded: the pictures, spoiled.
    """

    x: Tensor
    nearest: Tensor | None = None
    matched: Tensor | None = None
    partner: Tensor | None = None
    z: Tensor | None = None
    degraded: Tensor | None = None

    def split(self, parts: int) -> list["Batch"]:
        """The same rows as so many micro-batches of equal size."""
        rows = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        chunks = {name: torch.chunk(value, parts) for name, value in rows.items()}
        return [Batch(**{name: chunk[i] for name, chunk in chunks.items()}) for i in range(parts)]


class Batches:
    """Makes this rank's rows of any step; pool and pairs are refreshed where the step is due.

    Args:
        preset: batch, matching and degradations.
        pictures: (N, C, H, W) uint8, on the device to compute on.
        noise: of the latents.
        seed: of every draw.
        clock: told of the phases `data`, `pool` and `pairs`.
        ranks: who share a batch.
    """

    def __init__(
        self, preset: Preset, pictures: Tensor, noise: NoiseSampler, *, seed: int, clock: Clock, ranks: Ranks
    ) -> None:
        self._preset, self._pictures, self._noise, self._seed = preset, pictures, noise, seed
        self._clock, self._ranks = clock, ranks
        self._match_as(preset.matching)
        self._epoch, self._permutation = -1, torch.empty(0)
        self.size = min(preset.batch, len(pictures))

    def at(self, step: int, stage_step: int, stage: Stage, f: Function) -> Batch:
        """This rank's rows of a step.

        Args:
            step: of the run.
            stage_step: of the stage; pool and pairs are due at multiples of their intervals.
            stage: whose terms are on.
            f: the network as it stands, for candidates.
        """
        preset, own, weights = self._preset, self._ranks.own, stage.weights
        matching = preset.matching_of(stage)
        if matching != self._matching:
            self._match_as(matching)
        nearest = matched = partner = z = degraded = None
        with self._clock.phase("data"):
            x = to_model_range(self._pictures[own(self.order(step)).to(self._pictures.device)])
        if weights.imle > 0:
            with self._clock.phase("pool"):
                if stage_step % matching.pool_refresh == 0:
                    self._pool.refresh(f, self.generator(Stream.POOL, step))
                nearest = self._pool.nearest(x)
        if weights.match > 0:
            with self._clock.phase("pairs"):
                turn = stage_step % matching.pairs_refresh
                if turn == 0:
                    self._pairs.refresh(f, self._partners(step), self.generator(Stream.PAIRS, step))
                matched, partner = map(own, self._pairs.deal(turn, self.size))
        with self._clock.phase("data"):
            if weights.latents:
                z = own(self._noise.sample(self.size, self.generator(Stream.NOISE, step)))
            if weights.project > 0:
                draws = corruptions.draw(preset, self.size, self.generator(Stream.DEGRADE, step))
                degraded = corruptions.degraded(x, preset, draws.own(self._ranks))
        return Batch(x=x, nearest=nearest, matched=matched, partner=partner, z=z, degraded=degraded)

    def _match_as(self, matching: Matching) -> None:
        self._matching = matching
        self._pool = CandidatePool(matching, self._noise, self._ranks)
        self._pairs = BalancedPairs(matching, self._noise, self._ranks)

    def order(self, step: int) -> Tensor:
        """Indices of a step's pictures: every epoch is a permutation of its own; its ragged end is left out."""
        count = len(self._pictures)
        epoch, place = divmod(step, count // self.size)
        if self._epoch != epoch:
            generator = np.random.default_rng(mixed_seed(self._seed, Stream.ORDER, epoch))
            self._epoch, self._permutation = epoch, torch.from_numpy(generator.permutation(count))
        return self._permutation[place * self.size : (place + 1) * self.size]

    def generator(self, stream: Stream, step: int) -> torch.Generator:
        """Of that stream at that step; the same on every rank."""
        return torch.Generator(self._pictures.device).manual_seed(mixed_seed(self._seed, stream, step))

    def _partners(self, step: int) -> Tensor:
        generator = np.random.default_rng(mixed_seed(self._seed, Stream.PARTNERS, step))
        count = min(self._matching.pairs, len(self._pictures))
        chosen = torch.from_numpy(generator.choice(len(self._pictures), count, replace=False))
        return to_model_range(self._pictures[chosen.to(self._pictures.device)])
