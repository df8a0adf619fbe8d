"""Whether f is a projector: what it makes of drawings that are no pictures, in fonts and figures it
was not shown.
"""

import math
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter

from model_export.data.drawings import held_out_drawings, on_background
from model_export.evaluation.classifier import Classifier, Table, sample_budget
from model_export.evaluation.metrics import Function, auroc, mean_distance, nearest
from model_export.export.artifact import TrainedCard
from service.artifact.pixels import Levels, to_levels, to_rows
from service.domain.latents import FloatRows

_COUNT: Final = 480  # drawings of 28×28 of each kind
_SURE: Final = 0.9
_ROUNDING: Final = 1e-9  # of a correlation
# pixels of a 28-pixel side: strokes need not be at the same pixel to resemble one another
_BLUR: Final = 1.5


def measure_drawings(
    f: Function, card: TrainedCard, classifier: Classifier, real: Levels, train: Levels
) -> Table:
    """What f makes of letters and of shapes, beside what it makes of ``real`` pictures."""
    x = to_rows(real)
    distances = mean_distance(f(x), x)
    drawn = held_out_drawings(
        sample_budget(_COUNT, card.shape), card.shape[1], faces=card.shape[0] == 3
    )
    table: Table = {}
    for kind, ink in drawn.items():
        levels = to_levels(on_background(ink, card.shape[0], card.background))
        u = to_rows(levels)
        once = f(u)
        row: Table = {
            "n": len(u),
            "auroc": auroc(distances, mean_distance(once, u)),
            "own": _own(u, once),
            "distance": {
                "f": np.median(np.sqrt(np.square(once.astype(np.float64) - u).mean((1, 2, 3)))),
                "nearest": np.median(nearest(levels, train)),
            },
        }
        if classifier.task == "classes":
            row |= {"sure": {}, "effective_classes": {}}
            for name, rows in (("u", u), ("f", once), ("f3", f(f(once)))):
                read = classifier.predict(to_levels(rows))
                kl = classifier.coverage(read)["kl"]
                row["sure"][name] = (read.probabilities.max(1) >= _SURE).mean()
                row["effective_classes"][name] = classifier.heads[0] * math.exp(-kl)
        table[kind] = row
    return table


def _own(u: FloatRows, y: FloatRows) -> float:
    """Share of the pairs (i, j) with yᵢ more similar to uᵢ than yⱼ is; 0 if all y are the same
    picture.
    """
    n = len(u)
    sigma = _BLUR * u.shape[-1] / 28
    blurred = gaussian_filter(
        np.concatenate([u, y]).astype(np.float64), (0, 0, sigma, sigma)
    ).reshape(2 * n, -1)
    unit = blurred - blurred.mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    similarity = unit[:n] @ unit[n:].T
    more = similarity.diagonal()[:, None] > similarity + _ROUNDING
    return float(more.sum() / (n * (n - 1)))
