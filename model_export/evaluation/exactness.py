"""What an exact f does besides f(f(x)) = f(x), which a mark in the picture would achieve with any f.

A trick that leaves marked pictures alone returns forged ones as they are, and none of those that noise has changed.
"""

from typing import Final

import numpy as np

from model_export.evaluation.classifier import Table
from model_export.evaluation.metrics import mean_distance
from model_export.evaluation.restoration import Function
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import FloatRows

_COUNT: Final = 1000  # rows of each kind
_NOISES: Final = (0.005, 0.02, 0.05)
_LARGE: Final = 10.0  # uniform values within ±10: far from pictures
PROTOCOL: Final = (
    f"of {_COUNT} rows each: latents z, held-out pictures x, uniform noise in -10 to 10; twice: share with f(f(x)) = "
    "f(x) in every bit; file: the same with f(x) rounded to 8 bits; returned: share of y = f(z) with f(y + noise) = y "
    "in every bit, by sigma; forged: noise, or other pictures, with the means that f(z) has over blocks; unchanged: "
    "share that f returns as they are, change: mean |f(x) - x|. drift is not informative: it is 0"
)


def measure_exactness(f: Function, latents: FloatRows, pictures: FloatRows, *, side: int, seed: int) -> Table:
    """Shares of at most `_COUNT` latents and pictures, (N, C, H, W) each; the blocks have ``side`` pixels."""
    z, x = latents[:_COUNT], pictures[:_COUNT]
    random = np.random.default_rng(seed)
    y = f(z)

    def returned(rows: FloatRows, expected: FloatRows) -> float:
        return float((f(rows) == expected).all((1, 2, 3)).mean())

    twice, file = {}, {}
    large = random.uniform(-_LARGE, _LARGE, z.shape).astype(np.float32)
    for name, rows in {"latents": z, "pictures": x, "large": large}.items():
        once = f(rows)
        twice[name], file[name] = returned(once, once), returned(to_rows(to_levels(once)), once)
    noises = {str(s): y + s * random.standard_normal(y.shape, np.float32) for s in _NOISES}
    forged = {"noise": random.uniform(-1, 1, y.shape).astype(np.float32), "pictures": np.resize(x, y.shape)}
    return {
        "n": len(z),
        "twice": twice,
        "file": file,
        "returned": {name: returned(rows.astype(np.float32), y) for name, rows in noises.items()},
        "forged": {name: _forged(f, _with_means(rows, y, side)) for name, rows in forged.items()},
    }


def _with_means(rows: FloatRows, source: FloatRows, side: int) -> FloatRows:
    """The rows, whose block means are those of ``source``, within [−1, 1]."""
    wanted, own = _means(source, side), _means(rows, side)
    # Towards white or black, so that no value leaves the range.
    lighter = np.maximum(wanted - own, 0) / np.maximum(1 - own, 1e-6)
    darker = np.maximum(own - wanted, 0) / np.maximum(1 + own, 1e-6)
    forged: FloatRows = (rows + lighter * (1 - rows) - darker * (1 + rows)).astype(np.float32)
    return forged


def _means(rows: FloatRows, side: int) -> FloatRows:
    n, channels, height, width = rows.shape
    blocks = rows.reshape(n, channels, height // side, side, width // side, side).mean((3, 5))
    means: FloatRows = blocks.repeat(side, 2).repeat(side, 3)
    return means


def _forged(f: Function, rows: FloatRows) -> Table:
    once = f(rows)
    return {"unchanged": (once == rows).all((1, 2, 3)).mean(), "change": mean_distance(once, rows).mean()}
