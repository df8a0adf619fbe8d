"""What an exact f does besides f(f(x)) = f(x), which a mark in the picture would achieve with any
f.

Such a trick returns forged pictures as they are, and none of its own that noise has changed.
"""

from typing import Final

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate

from model_export.evaluation.classifier import Table
from model_export.evaluation.metrics import Function, mean_distance
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import FloatRows

_COUNT: Final = 1000  # rows of each kind
_NOISES: Final = (0.005, 0.02, 0.05)


def measure_exactness(f: Function, latents: FloatRows, pictures: FloatRows, *, side: int) -> Table:
    """Shares of at most `_COUNT` latents and pictures, (N, C, H, W) each; the blocks have ``side``
    pixels.
    """
    random = np.random.default_rng(0)
    z = latents[:_COUNT]
    y = f(z)
    uniform = random.uniform(-1, 1, z.shape).astype(np.float32)

    def returned(rows: FloatRows, expected: FloatRows) -> float:
        return float((f(rows) == expected).all((1, 2, 3)).mean())

    made = {"latents": y, "pictures": f(pictures[:_COUNT]), "large": f(10 * uniform)}
    forged = _with_means(uniform, y, side)
    return {
        "n": len(z),
        "twice": {name: returned(rows, rows) for name, rows in made.items()},
        "file": {name: returned(to_rows(to_levels(rows)), rows) for name, rows in made.items()},
        "returned": {
            str(s): returned(y + random.normal(0, s, y.shape).astype(np.float32), y)
            for s in _NOISES
        },
        "forged": {
            "unchanged": returned(forged, forged),
            "change": mean_distance(f(forged), forged).mean(),
        },
    }


def _with_means(rows: FloatRows, source: FloatRows, side: int) -> FloatRows:
    """The rows, moved towards white or black so far that their block means are those of
    ``source``.
    """
    x = torch.from_numpy(rows)
    own, wanted = (
        interpolate(avg_pool2d(each, side), scale_factor=float(side))
        for each in (x, torch.from_numpy(source))
    )
    end = (wanted > own).float() * 2 - 1
    share = (wanted - own) / (end - own)
    return (x + share * (end - x)).numpy()
