"""Figures of f applied 1, 10, 100 and 1000 times to latents, real pictures and corrupted pictures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from model_export.evaluation.classifier import ClassifierEvaluator, Table, sample_budget
from model_export.evaluation.metrics import Numbers, frechet, mean_distance
from model_export.evaluation.restoration import Function
from service.artifact.pixels import to_levels
from service.domain.latents import FloatRows

COUNTS: Final = (1, 10, 100, 1000)  # k
CORRUPTION: Final = "noise_0.8"  # of the restored pictures
# Pictures of 28×28 for each of the three starts. One core computes about 7700 of their applications of f per second, so
# 3 · 1000 · 100 applications take 40 seconds; fewer if pictures come to rest.
_PICTURES: Final = 100
_LEAST: Final = 32  # pictures of any size: a share of fewer says little

PROTOCOL: Final = (
    f"y = f applied k times to n latents (samples), the first n of `real`, and the same with {CORRUPTION} "
    "(restored); drift: mean |f(y) - y|; at_rest: share with f(y) = y in every bit; frechet: of the n pictures against "
    "all held-out ones, larger than for more pictures; same_class, same_attributes: share of those of k = 1"
)


def budget(shape: tuple[int, ...]) -> int:
    """The number of pictures (C, H, W) for each start."""
    return max(_LEAST, sample_budget(_PICTURES, shape))


def repeated_application(
    f: Function,
    starts: Mapping[str, FloatRows],
    *,
    evaluator: ClassifierEvaluator,
    reference: Numbers,
    classes: bool,
    steps: int,
) -> Table:
    """Measure f^k for each start.

    Args:
        f: the measured function; it computes every row independently of the others.
        starts: inputs of f by name, (n, C, H, W) each, n ≥ 2.
        reference: features of real pictures, (M, D).
        steps: largest k, ≥ 1.
    """
    counts = [k for k in COUNTS if k <= steps]
    table: Table = {"n": min(map(len, starts.values()))}
    for name, rows in starts.items():
        first = None
        table[name] = {}
        for k, (y, after) in zip(counts, apply_repeatedly(f, rows, counts), strict=True):
            predictions = evaluator.predict(to_levels(y))
            first = predictions.values if first is None else first
            same = predictions.values == first
            kept = "same_class" if classes else "same_attributes"
            table[name]["f" if k == 1 else f"f{k}"] = {
                "frechet": frechet(predictions.features, reference),
                **({kept: same.mean()} if classes or same.shape[1] > 1 else {}),
                "drift": mean_distance(after, y).mean(),
                "at_rest": (after == y).all((1, 2, 3)).mean(),
            }
    return table


def apply_repeatedly(f: Function, rows: FloatRows, counts: Sequence[int]) -> Iterator[tuple[FloatRows, FloatRows]]:
    """Yield f^k(rows) and f^(k+1)(rows) for each k of ``counts``, in ascending order, k ≥ 1.

    A row with f(y) = y in every bit stays equal for ever, so f is not applied to it again.
    """
    y = f(rows)
    after = f(y)
    moving = np.arange(len(y))
    k = 1
    for count in counts:
        while k < count:
            moving = moving[(after[moving] != y[moving]).any((1, 2, 3))]
            y, after = after, after.copy()
            if len(moving):
                after[moving] = f(y[moving])
            k = k + 1 if len(moving) else count
        yield y, after
