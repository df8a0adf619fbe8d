"""Does the exported file compute what was trained? Writes the golden rows by which a service asks the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from model_export.errors import UserError
from model_export.export.artifact import GOLDEN, MODEL, Golden, OnnxFunction, Precision, read_all
from model_export.files import atomic
from model_export.training.trained import TrainedModel, load_run
from service.artifact.card import ModelCard
from service.domain.latents import FloatRows, NoiseSource

_ODD: Final = 7  # a batch size that is no bucket
_ROWS: Final = 16  # golden ones
_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the exported file compares with the trained network.

    Args:
        difference: largest |onnxruntime − torch| over all rows and batch sizes.
        spread: largest difference of one row between batch sizes in onnxruntime; 0 = identical bits.
        batches: batch sizes that were run.
    """

    difference: float
    spread: float
    batches: tuple[int, ...]

    def __str__(self) -> str:
        """One line for people."""
        rows = "rows identical" if self.spread == 0.0 else f"rows differ by {self.spread:.1e}"
        sizes = ", ".join(map(str, self.batches))
        return f"torch and onnxruntime differ by at most {self.difference:.1e}; {rows} at batch sizes {sizes}"


def verify(run: Path, folder: Path, *, threads: int = 0) -> dict[str, Verification]:
    """Compare every model of an exported version with its run, and write the golden rows anew.

    Returns:
        How each compares, by file name.

    Raises:
        UserError: not that run's model, it differs by more than its card allows, or the cards are not the same;
            nothing is written then.
    """
    model, (exported, *others) = load_run(run), read_all(folder, threads=threads)
    if exported.card.training.config != model.checkpoint.preset:
        raise UserError(f"{folder / MODEL}: exported from another run than {run}")
    golden, result = compare(model, exported.card, exported.noise, exported.function)
    results = {exported.file: result}
    for other in others:
        if other.card != exported.card:
            raise UserError(f"{folder / other.file}: another card than {MODEL}; `export` it again")
        _, results[other.file] = compare(model, other.card, other.noise, other.function, other.precision)
    with atomic(folder / GOLDEN) as file:
        file.write(golden.to_bytes(exported.data))
    return results


def compare(
    model: TrainedModel, card: ModelCard, noise: NoiseSource, function: OnnxFunction, precision: Precision = "fp32"
) -> tuple[Golden, Verification]:
    """Run the same rows through both, at every bucket and at a size that is none.

    Returns:
        Golden rows with torch's outputs, and the comparison.

    Raises:
        UserError: they differ by more than the card's tolerance for this precision.
    """
    batches = tuple(sorted({*card.buckets, _ODD}))
    golden_rows = _inputs(card, noise)
    rows = np.concatenate([golden_rows, noise.rows(_SEED, _ROWS, max(0, batches[-1] - _ROWS))])
    with torch.inference_mode():
        wanted = model.network(torch.from_numpy(rows)).numpy()
    alone = _in_batches(function, rows, 1)
    difference = spread = 0.0
    for size in batches:
        result = _in_batches(function, rows, size)
        difference = max(difference, _largest(result, wanted))
        spread = max(spread, _largest(result, alone))
    # A NaN is no number below the tolerance either.
    allowed: float = getattr(card.tolerance, precision)
    if not difference <= allowed:
        name = card.ref if precision == "fp32" else f"{card.ref} in {precision}"
        raise UserError(f"{name}: torch and onnxruntime differ by {difference:.2g}, allowed are {allowed:.2g}")
    golden = Golden(x=golden_rows, y=wanted[:_ROWS])
    return golden, Verification(difference=difference, spread=spread, batches=batches)


def _inputs(card: ModelCard, noise: NoiseSource) -> FloatRows:
    """Rows of all that f meets: flat and structured pictures, noise on one of them, and latents."""
    lo, hi = card.range
    background = np.asarray(card.background)[:, None, None]
    down, right = np.meshgrid(*(np.linspace(0.0, 1.0, side) for side in card.shape[1:]), indexing="ij")
    stripe = (np.abs(right - 0.5) < 0.12).astype(np.float64)
    patterns = (right, down, right * down, (right + down) * 2.0 % 1.0, stripe)
    pictures = [np.full(card.shape, value) for value in (0.0, lo, hi)] + [np.broadcast_to(background, card.shape)]
    pictures += [np.broadcast_to(lo + pattern * (hi - lo), card.shape) for pattern in patterns]
    pictures += [pictures[-1] + 0.5 * noise.row(_SEED, 0)]
    latents = noise.rows(_SEED, 0, _ROWS - len(pictures))
    return np.concatenate([np.stack(pictures).astype(np.float32), latents])


def _in_batches(function: OnnxFunction, rows: FloatRows, size: int) -> FloatRows:
    return np.concatenate([function.once(rows[i : i + size]) for i in range(0, len(rows), size)])


def _largest(a: FloatRows, b: FloatRows) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())
