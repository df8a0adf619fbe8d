"""Compare an exported file with the trained network, and write the golden rows with which the
service checks it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from model_export.errors import UserError
from model_export.export.artifact import OnnxFunction, TrainedCard, read_all, sample_rows
from model_export.files import write_file
from model_export.training.checkpoint import CARD_FIELDS, Checkpoint, TrainedModel, load_run
from model_export.training.network import Autoencoder
from service.artifact.files import GOLDEN_FILE, MODEL_FILE, MODEL_FILES, Precision
from service.artifact.golden import Golden, digest_of, max_abs_diff
from service.domain.latents import FloatRows, NoiseSource

_ODD_BATCH: Final = 7  # a batch size that is not a bucket
_GOLDEN_ROWS: Final = 16
# times as many rows as are needed, of an exact model: those near a jump are left out
_SPARE: Final = 4
_MARGIN: Final = 1e-3  # levels
_CORNER: Final = 96  # pixels
_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the exported file compares with the trained network."""

    difference: float  # largest |onnxruntime − torch| over all rows and batch sizes
    # largest difference of one row between batch sizes in onnxruntime; 0 means identical bits
    spread: float
    batches: tuple[int, ...]  # batch sizes that were run

    def __str__(self) -> str:
        rows = "rows identical" if self.spread == 0.0 else f"rows differ by {self.spread:.1e}"
        sizes = ", ".join(map(str, self.batches))
        return (
            f"torch and onnxruntime differ by at most {self.difference:.1e}; {rows} at batch "
            f"sizes {sizes}"
        )


def verify(run: Path, folder: Path, *, threads: int = 0) -> dict[str, Verification]:
    """Compare every model file of a version with its run, and write the golden rows again."""
    model = load_run(run)
    artifacts = read_all(folder, threads=threads)
    exported = artifacts[0]
    check_run(exported.card, run, model.checkpoint)
    digest = digest_of(exported.data)
    results = {}
    for artifact in artifacts:
        name = MODEL_FILES[artifact.precision]
        if artifact.card != exported.card:
            raise UserError(f"{folder / name}: another card than {MODEL_FILE}; `export` it again")
        golden, results[name] = compare(
            model, artifact.card, artifact.function, digest, artifact.precision
        )
    write_file(folder / GOLDEN_FILE, golden.to_bytes())
    return results


def check_run(card: TrainedCard, run: Path, checkpoint: Checkpoint) -> None:
    """Check that a model was exported from a run, as that is now. Fields that only the card uses
    may differ.
    """
    trained = card.training
    before = {**trained.config, "data": card.data.sha256, "steps": trained.steps}
    now = {**checkpoint.preset, "data": checkpoint.data["sha256"], "steps": checkpoint.step}
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    differs = sorted(changed - (set(CARD_FIELDS) - {"data"}))
    # with another seed, for example
    if not changed and checkpoint.provenance.get("command") != trained.command:
        differs.append("command")
    if differs:
        raise UserError(
            f"{card.ref}: not exported from {run} as that is now, which differs by its "
            f"{', '.join(differs)}; its command: {trained.command}; export it again"
        )


def compare(
    model: TrainedModel,
    card: TrainedCard,
    function: OnnxFunction,
    digest: str,
    precision: Precision = "fp32",
) -> tuple[Golden, Verification]:
    """Run the same rows, of the smallest tiles, through torch and onnxruntime.

    Batches have the sizes of all buckets, and one more size.
    """
    batches = tuple(sorted({*card.buckets, _ODD_BATCH}))
    noise = NoiseSource(card.row_shapes[0])
    golden_rows = _golden_inputs(card)
    count = max(batches[-1], len(golden_rows))
    rows = np.concatenate(
        [golden_rows, noise.rows(_SEED, _GOLDEN_ROWS, (_SPARE if card.exact else 1) * count)]
    )
    with torch.inference_mode():
        if (
            card.exact
            and isinstance(model.network, Autoencoder)
            and model.network.blocks is not None
        ):
            x = torch.from_numpy(rows)
            rows = rows[
                (model.network.blocks.margin(x, model.network.decoded(x)) > _MARGIN).numpy()
            ]
        rows = rows[:count]
        golden_rows = rows[: len(golden_rows)]
        expected = model.network(torch.from_numpy(rows)).numpy()

    single = function(rows, 1)
    results = [function(rows, size) for size in batches]
    difference = max(max_abs_diff(result, expected) for result in results)
    spread = max(max_abs_diff(result, single) for result in results)
    allowed: float = getattr(card.tolerance, precision)
    if difference > allowed:
        name = card.ref if precision == "fp32" else f"{card.ref} in {precision}"
        raise UserError(
            f"{name}: torch and onnxruntime differ by {difference:.2g}, allowed are {allowed:.2g}"
        )
    golden = Golden(x=golden_rows, y=expected[: len(golden_rows)], digest=digest)
    return golden, Verification(difference=difference, spread=spread, batches=batches)


def _golden_inputs(card: TrainedCard) -> FloatRows:
    rows = sample_rows(card, card.row_shapes[0], _GOLDEN_ROWS)
    if card.noise is not None:
        return rows
    # A model of pages has large rows, and the service runs them at every start.
    _, stripe, *_, noisy = rows
    corner = (slice(None), slice(0, _CORNER), slice(0, _CORNER))
    stripe[corner] = noisy[corner]
    return np.asarray(stripe[np.newaxis])
