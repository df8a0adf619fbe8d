"""Metrics of pictures and of features.

Pictures are rows (N, C, H, W) float32 in [−1, 1], or levels, the same in uint8 0…255.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import entropy, mannwhitneyu

from service.artifact.pixels import Levels
from service.domain.latents import FloatRows

Numbers = NDArray[np.floating[Any]]
Values = NDArray[np.float64]
Function = Callable[[FloatRows], FloatRows]

_RANGE: Final = 2.0  # width of [−1, 1]
# mean square at which PSNR stops rising: identical pictures get a finite value
_MIN_ERROR: Final = 1e-10
_SSIM_RADIUS: Final = 5
# (K L)² of the paper, with L the range
_SSIM_CONSTANTS: Final = ((0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2)
_SSIM_CHUNK: Final = 64  # pictures: more do not fit into the processor's cache
_CHUNK: Final = 4096


def powers(f: Function, rows: FloatRows, count: int) -> list[FloatRows]:
    """rows, f(rows), f(f(rows)), …: count + 1 arrays."""
    chain = [rows]
    for _ in range(count):
        chain.append(f(chain[-1]))
    return chain


def frechet(a: Numbers, b: Numbers) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of Gaussians fitted to (N, D) and (M, D) (Dowson and
    Landau, 1982).
    """
    a = a.astype(np.float64)
    b = b.astype(np.float64)
    first = np.cov(a, rowvar=False)
    second = np.cov(b, rowvar=False)
    # tr (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½. That matrix is
    # symmetric, so the result is real and stable even with fewer pictures than features, where the
    # covariances are singular.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return float(mean + np.trace(first) + np.trace(second) - 2.0 * cross)


def kl_to_uniform(counts: Numbers | NDArray[np.int64]) -> float:
    """KL divergence in nats of a histogram (K,) from the uniform distribution: 0 if even, ln K for
    a single class.
    """
    return float(entropy(counts, np.ones(len(counts))))


def auroc(negative: Values, positive: Values) -> float:
    """The probability that a positive value is above a negative one: 0.5 if they are alike, 1 if
    all are above.
    """
    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def mean_distance(a: FloatRows, b: FloatRows) -> Values:
    """Mean |a − b| of every picture in float64, (N,). The service calls it distance, drift and
    change.
    """
    return np.abs(a.astype(np.float64) - b).mean((1, 2, 3))


def psnr(a: FloatRows, b: FloatRows) -> Values:
    """Peak signal-to-noise ratio of every picture in dB, (N,)."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return 10.0 * np.log10(_RANGE**2 / np.maximum(error, _MIN_ERROR))


def ssim(a: FloatRows, b: FloatRows) -> Values:
    """Structural similarity of every picture, (N,) (Wang et al., 2004).

    Gaussian window with σ 1.5 and radius 5 pixels, population covariance; the mean over channels
    and over the positions at which the window lies inside the picture. For a side below 11, the
    mean is over the middle of the picture.
    """
    chunks = range(0, len(a), _SSIM_CHUNK)
    return np.concatenate([_ssim(a[i : i + _SSIM_CHUNK], b[i : i + _SSIM_CHUNK]) for i in chunks])


def _ssim(a: FloatRows, b: FloatRows) -> Values:
    x, y = (rows.astype(np.float64) for rows in (a, b))
    # Without the positions whose window leaves the picture.
    top, left = (min(_SSIM_RADIUS, (length - 1) // 2) for length in a.shape[2:])
    inside = (..., slice(top, a.shape[2] - top), slice(left, a.shape[3] - left))
    mean_x, mean_y, xx, yy, xy = (
        gaussian_filter(each, 1.5, radius=_SSIM_RADIUS, axes=(2, 3))[inside]
        for each in (x, y, x * x, y * y, x * y)
    )
    product = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    c1, c2 = _SSIM_CONSTANTS
    similarity: Values = (2 * product + c1) * (2 * (xy - product) + c2)
    similarity /= (squares + c1) * (xx + yy - squares + c2)
    return np.asarray(similarity.mean((1, 2, 3)))


def nearest(queries: Levels, references: Levels) -> Values:
    """Distance of every query (N, …) to its nearest reference (M, …): root mean square, in units of
    rows, (N,).

    If both are the same array, a picture does not count as its own neighbour.
    """
    # Squares of levels are integers, which float64 adds up exactly.
    flat = torch.from_numpy(queries).flatten(1).double()
    best = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    for start in range(0, len(references), _CHUNK):
        part = torch.from_numpy(references[start : start + _CHUNK]).flatten(1).double()
        distances = torch.cdist(flat, part)
        if queries is references:
            distances[start : start + _CHUNK].fill_diagonal_(torch.inf)
        best = torch.minimum(best, distances.min(1).values)
    distance: Values = best.numpy() / math.sqrt(flat.shape[1])
    return distance * (_RANGE / 255.0)
