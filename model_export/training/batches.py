"""The rows of every training step: pictures, latents, their pairs, corrupted copies.

Every random number is a function of (seed, stream, step), so a checkpoint needs no random state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model_export.data.corruptions import corrupt
from model_export.data.datasets import to_model_range
from model_export.data.drawings import Draw, random_drawings
from model_export.training.losses import Function
from model_export.training.presets import Preset
from model_export.training.stages import Stage, Weights

_PENS: Final = 256  # pictures whose colours the drawings have
_DRAWN_ROWS: Final = 8  # pens in a step of a `Crisp`
_DRAWN: Final = 4  # its pictures for each other drawing
_NONE: Final = torch.empty(0)
# latents in one forward pass: larger chunks are not faster on a CPU and need more memory
_CHUNK: Final = 512


class RngStream(IntEnum):
    """Independent streams of random numbers. The values are part of a run's reproducibility: never
    change one.
    """

    INIT = 0
    ORDER = 1
    NOISE = 2
    POOL = 3
    PAIRS = 4
    PAIR_PICTURES = 5
    CORRUPTION = 6
    SAMPLES = 7
    DISCRIMINATOR = 8
    DRIFT_PICTURES = 10
    DRAWINGS = 14
    DRAWN = 15
    BLOCKS = 16
    PERCEPTUAL = 17
    TERMS = 18
    PALETTE = 19


def derive_seed(seed: int, stream: int, step: int) -> int:
    """Hash three numbers to a seed of 63 bits."""
    return int(
        np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


class CandidatePool:
    """Latents with their outputs; every picture picks the latent whose output is nearest (IMLE).

    One pool serves several steps. Outputs that are a few steps old choose nearly as well as fresh
    ones, and a pool of thousands chooses much better than the few candidates that one step could
    afford.
    """

    def __init__(self, f: Function, latents: Tensor) -> None:
        self._latents = latents
        self._outputs = _outputs(f, latents)
        self._norms = self._outputs.square().sum(1)

    def nearest(self, x: Tensor) -> Tensor:
        """For each picture (B, C, H, W), the latent whose output has the least squared distance;
        same shape.
        """
        # In bfloat16 the rounding of the product would be as large as the distances between
        # candidates.
        with torch.autocast(x.device.type, enabled=False):
            # ‖a − p‖² = ‖a‖² − 2a·p + ‖p‖². ‖p‖² is the same for all candidates a of a picture p.
            squared = self._norms - 2.0 * x.float().flatten(1) @ self._outputs.T  # (B, pool)
        return self._latents[squared.argmin(1)]


class BalancedPairs:
    """M latents and M pictures, paired one to one so that the total squared distance is least, for
    several batches.

    Every latent has a target and no picture is preferred, in contrast to `CandidatePool`.
    """

    def __init__(self, f: Function, latents: Tensor, pictures: Tensor) -> None:
        cost = torch.cdist(_outputs(f, latents), pictures.float().flatten(1)).square()
        self._latents = latents
        self._partners = pictures[linear_sum_assignment(cost.cpu().numpy())[1]]

    def batch(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Batch number ``index``: latents and pictures, (size, C, H, W) each. Wraps around."""
        rows = torch.arange(index * size, (index + 1) * size, device=self._latents.device) % len(
            self._latents
        )
        return self._latents[rows], self._partners[rows]


@torch.no_grad()
def _outputs(f: Function, latents: Tensor) -> Tensor:
    """f(z) of many latents, in chunks: (N, C·H·W) float32."""
    return torch.cat([f(chunk).float().flatten(1) for chunk in torch.split(latents, _CHUNK)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBatch:
    """The rows of one step, (B, C, H, W) each; None if no active term needs them."""

    x: Tensor  # pictures
    nearest: Tensor | None = None  # the candidate latent whose output is nearest to each picture
    matched: Tensor | None = None  # latents of balanced pairs
    partner: Tensor | None = None  # the pictures they are paired with
    z: Tensor | None = None  # fresh latents
    corrupted: Tensor | None = None  # corrupted copies of x
    drift_pictures: Tensor | None = None  # pictures that attract the samples
    drawings: Tensor | None = None  # u, as many as pictures
    sketched: Tensor = _NONE  # (B,) which of the corrupted rows are sketches
    drawn: Tensor = _NONE  # pens
    fitting: Tensor = _NONE  # pictures that fit each of them, (B, K, C, H, W)
    progress: float = 0.0  # share of the stage that is done
    generator: torch.Generator = field(default_factory=torch.Generator)  # of further random numbers

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers on the device of the pictures."""
        return torch.randn(shape, generator=self.generator, device=self.x.device)


class BatchBuilder:
    """Builds the rows of any step, from pictures (N, C, H, W) uint8 on the device to compute on."""

    def __init__(
        self,
        preset: Preset,
        pictures: Tensor,
        *,
        seed: int,
        damaged: Tensor | None = None,
    ) -> None:
        self._preset = preset
        self._pictures = pictures
        self._damaged = damaged
        self._seed = seed
        self.drawn: Sequence[
            Tensor
        ] = ()  # drawings (M, C, H, W) uint8, and the numbers (M, K) of pictures that fit
        self._pool: CandidatePool | None = None
        self._pairs: BalancedPairs | None = None
        self._epoch, self._permutation = -1, torch.empty(0)
        self.size = min(preset.batch, len(pictures))

    def build(self, step: int, stage_step: int, stage: Stage, f: Function) -> TrainingBatch:
        """The step of the run seeds random numbers, that of the stage times the refreshes."""
        weights = stage.weights
        indices = self.picture_indices(step)
        x = self._chosen(indices)
        rows: dict[str, Any] = {"x": x}
        if weights.imle > 0:
            rows["nearest"] = self._nearest(x, step, stage_step, f)
        if weights.match > 0:
            rows["matched"], rows["partner"] = self._matched(step, stage_step, f)
        samples = (
            stage.drift_pictures
            if weights.need("attraction") and stage.drift_pictures
            else self.size
        )
        if weights.need("latents"):
            rows["z"] = self.latents(samples, RngStream.NOISE, step)
        if weights.project > 0:
            rows |= self._corrupted(x, indices, step)
        rows |= self._drawings_of(x, weights, step)
        if weights.need("attraction"):
            rows["drift_pictures"] = self._random_pictures(samples, RngStream.DRIFT_PICTURES, step)
        return TrainingBatch(
            **rows,
            progress=stage_step / stage.steps,
            generator=self.generator(RngStream.TERMS, step),
        )

    def _drawings_of(self, x: Tensor, weights: Weights, step: int) -> dict[str, Tensor]:
        """As many drawings as pictures.

        For a `Crisp`, some, and pens with the pictures that fit them.
        """
        generator = self.generator(RngStream.DRAWN, step)
        if weights.gate == 0:
            return {"drawings": self.draw(x, generator)} if weights.project_any > 0 else {}
        drawings = self.draw(x[: len(x) // _DRAWN], generator)
        drawn = x[:0]
        fitting = x[:0, None]
        if self.drawn:
            chosen = torch.randint(
                len(self.drawn[0]), (_DRAWN_ROWS,), generator=generator, device=x.device
            )
            drawn = to_model_range(self.drawn[0][chosen])
            fitting = self._chosen(self.drawn[1][chosen])
        return {"drawings": drawings, "drawn": drawn, "fitting": fitting}

    def _corrupted(self, x: Tensor, indices: Tensor, step: int) -> dict[str, Tensor]:
        """Damaged copies of x: those of the data, else random ones and which are sketches."""
        if self._damaged is not None:
            return {"corrupted": to_model_range(self._damaged[indices])}
        names = self._preset.corruptions
        corrupted, kind = corrupt(x, names, self.generator(RngStream.CORRUPTION, step))
        are_sketches = torch.tensor([name == "sketch" for name in names], device=x.device)
        return {"corrupted": corrupted, "sketched": are_sketches[kind]}

    def picture_indices(self, step: int) -> Tensor:
        """Indices of a step's pictures (B,). Every epoch is a permutation; its incomplete last
        batch is dropped.
        """
        count = len(self._pictures)
        epoch, position = divmod(step, count // self.size)
        if self._epoch != epoch:
            generator = np.random.default_rng(derive_seed(self._seed, RngStream.ORDER, epoch))
            self._epoch, self._permutation = epoch, torch.from_numpy(generator.permutation(count))
        return self._permutation[position * self.size : (position + 1) * self.size]

    def generator(self, stream: RngStream, step: int) -> torch.Generator:
        """The generator of a stream at a step, on the device of the pictures."""
        return torch.Generator(self._pictures.device).manual_seed(
            derive_seed(self._seed, stream, step)
        )

    def latents(self, count: int, stream: RngStream, step: int) -> Tensor:
        """The first latents (count, C, H, W) of a stream at a step."""
        generator = self.generator(stream, step)
        shape = (count, *self._preset.shape)
        return torch.randn(shape, generator=generator, device=generator.device)

    def inputs(self, count: int, stream: RngStream, step: int) -> Tensor:
        """What f is for: latents, or damaged pictures of the data, at most ``count``."""
        damaged = self._damaged
        return (
            self.latents(count, stream, step)
            if damaged is None
            else to_model_range(damaged[:count])
        )

    def example_pictures(self, count: int) -> Tensor:
        """Random pictures, the same for every stage: (count, C, H, W) in [−1, 1]. Few pictures are
        repeated.
        """
        order = np.random.default_rng(self._seed).permutation(len(self._pictures))
        return self._chosen(np.resize(order, count))

    def _nearest(self, x: Tensor, step: int, stage_step: int, f: Function) -> Tensor:
        matching = self._preset.matching
        # A resumed run has no pool, but it resumes only where the pool is due anyway: see
        # `Preset.refresh_interval`.
        if stage_step % matching.pool_refresh == 0 or self._pool is None:
            self._pool = CandidatePool(f, self.latents(matching.pool, RngStream.POOL, step))
        return self._pool.nearest(x)

    def _matched(self, step: int, stage_step: int, f: Function) -> tuple[Tensor, Tensor]:
        matching = self._preset.matching
        index = stage_step % matching.pairs_refresh
        if index == 0 or self._pairs is None:
            pictures = self._random_pictures(matching.pairs, RngStream.PAIR_PICTURES, step)
            latents = self.latents(len(pictures), RngStream.PAIRS, step)
            self._pairs = BalancedPairs(f, latents, pictures)
        return self._pairs.batch(index, self.size)

    @cached_property
    def draw(self) -> Draw:
        """Makes drawings u, rows that are no pictures. Its first use takes seconds."""
        preset = self._preset
        seed = derive_seed(self._seed, RngStream.DRAWINGS, 0)
        colours = self.example_pictures(_PENS)
        return random_drawings(colours, preset.background, seed, digits=preset.drawn_digits)

    def _random_pictures(self, count: int, stream: RngStream, step: int) -> Tensor:
        """Random pictures without repetition, at most as many as there are: (count, C, H, W) in
        [−1, 1].
        """
        generator = np.random.default_rng(derive_seed(self._seed, stream, step))
        return self._chosen(
            generator.choice(len(self._pictures), min(count, len(self._pictures)), replace=False)
        )

    def _chosen(self, indices: NDArray[np.int64] | Tensor) -> Tensor:
        return to_model_range(self._pictures[indices])
