"""Measures on pictures and features: numbers in, numbers out.

Pictures are rows (N, C, H, W) float32 in [−1, 1], or levels, the same in uint8 0…255.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from model_export.data.pixels import Levels
from service.domain.latents import FloatRows

Numbers = NDArray[np.floating[Any]]

SPAN: Final = 2.0  # width of the range
_LEAST_ERROR: Final = 1e-10  # of a mean square: where PSNR stops rising
_WINDOW: Final = 1.5  # σ of the SSIM window in pixels
_RADIUS: Final = 5
_CHUNK: Final = 4096


def frechet(a: Numbers, b: Numbers) -> float:
    """Fréchet distance of two Gaussians fitted to features (N, D) and (M, D) (Dowson and Landau, 1982).

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½). The trace of the root is taken from the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which
    is symmetric, so that fewer pictures than features do no harm.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return float(mean + np.trace(first) + np.trace(second) - 2.0 * cross)


def kl_to_uniform(counts: Numbers | NDArray[np.int64]) -> float:
    """KL divergence in nats of a histogram (K,) from the uniform distribution; 0 = even, ln K = a single class."""
    share = counts[counts > 0] / counts.sum()
    return float((share * np.log(share * len(counts))).sum())


def mean_distance(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    """Mean |a − b| of every picture in float64, (N,): what the service calls distance, drift and change."""
    distance: NDArray[np.float64] = np.abs(a.astype(np.float64) - b).mean((1, 2, 3))
    return distance


def psnr(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of every picture in dB, (N,)."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    ratio: NDArray[np.float64] = 10.0 * np.log10(SPAN**2 / np.maximum(error, _LEAST_ERROR))
    return ratio


def ssim(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    """Structural similarity of every picture, (N,) (Wang et al., 2004).

    Gaussian window of σ 1.5 pixels cut at 5, population covariance, K₁ 0.01, K₂ 0.03; mean over channels and over all
    positions at which the window lies inside the picture (over the middle of pictures smaller than the window).
    """
    return np.concatenate([_ssim(x, y) for x, y in _pairs(a, b)])


def nearest(queries: Levels, references: Levels) -> NDArray[np.float64]:
    """Distance of every query (N, …) to its nearest reference (M, …): root mean square, in units of rows, (N,).

    Where both are the same array, a picture is not its own neighbour.
    """
    flat = queries.reshape(len(queries), -1).astype(np.float32)
    norms = np.square(flat).sum(1)
    best, index = np.full(len(flat), np.inf), np.zeros(len(flat), dtype=np.int64)
    for start in range(0, len(references), _CHUNK):
        part = references[start : start + _CHUNK].reshape(-1, flat.shape[1]).astype(np.float32)
        squared = norms[:, None] + np.square(part).sum(1) - 2.0 * flat @ part.T  # (N, chunk)
        if queries is references:
            own = np.arange(len(part))
            squared[start + own, own] = np.inf
        column = squared.argmin(1)
        value = squared[np.arange(len(flat)), column]
        index = np.where(value < best, start + column, index)
        best = np.minimum(best, value)
    # The expanded square chooses well but loses the digits of small distances.
    chosen = references[index].reshape(len(flat), -1)
    distance: NDArray[np.float64] = np.sqrt(np.square(flat.astype(np.float64) - chosen).mean(1))
    return distance * (SPAN / 255.0)


def _pairs(a: FloatRows, b: FloatRows) -> Iterator[tuple[FloatRows, FloatRows]]:
    for start in range(0, len(a), _CHUNK):
        yield a[start : start + _CHUNK], b[start : start + _CHUNK]


def _ssim(x: FloatRows, y: FloatRows) -> NDArray[np.float64]:
    a, b = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = _blurred(a), _blurred(b)
    var_x, var_y = _blurred(a * a) - mean_x**2, _blurred(b * b) - mean_y**2
    covariance = _blurred(a * b) - mean_x * mean_y
    c1, c2 = (0.01 * SPAN) ** 2, (0.03 * SPAN) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    rows, columns = (min(_RADIUS, (side - 1) // 2) for side in x.shape[2:])
    inside = similarity[:, :, rows : x.shape[2] - rows, columns : x.shape[3] - columns]
    mean: NDArray[np.float64] = inside.mean((1, 2, 3))
    return mean


def _blurred(images: NDArray[np.float64]) -> NDArray[np.float64]:
    blurred: NDArray[np.float64] = gaussian_filter(images, _WINDOW, axes=(2, 3), radius=_RADIUS)
    return blurred
