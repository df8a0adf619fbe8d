"""Metrics of pictures and of features.

Pictures are rows (N, C, H, W) float32 in [−1, 1], or levels, the same in uint8 0…255.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import entropy, mannwhitneyu
from skimage.metrics import structural_similarity

from service.artifact.pixels import Levels
from service.domain.latents import FloatRows

Numbers = NDArray[np.floating[Any]]

_RANGE: Final = 2.0  # width of [−1, 1]
# mean square at which PSNR stops rising: identical pictures get a finite value
_MIN_ERROR: Final = 1e-10
_SSIM_RADIUS: Final = 5
_SSIM_CHUNK: Final = 64  # pictures: more do not fit into the processor's cache
_CHUNK: Final = 4096


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


def auroc(negative: NDArray[np.float64], positive: NDArray[np.float64]) -> float:
    """The probability that a positive value is above a negative one: 0.5 if they are alike, 1 if
    all are above.
    """
    above = mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(above / (len(negative) * len(positive)))


def mean_distance(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    """Mean |a − b| of every picture in float64, (N,). The service calls it distance, drift and
    change.
    """
    distance: NDArray[np.float64] = np.abs(a.astype(np.float64) - b).mean((1, 2, 3))
    return distance


def psnr(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of every picture in dB, (N,)."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    ratio: NDArray[np.float64] = 10.0 * np.log10(_RANGE**2 / np.maximum(error, _MIN_ERROR))
    return ratio


def ssim(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    """Structural similarity of every picture, (N,) (Wang et al., 2004).

    Gaussian window with σ 1.5 and radius 5 pixels, population covariance; the mean over channels
    and over the positions at which the window lies inside the picture. For a side below 11, the
    mean is over the middle of the picture.
    """
    chunks = range(0, len(a), _SSIM_CHUNK)
    return np.concatenate([_ssim(a[i : i + _SSIM_CHUNK], b[i : i + _SSIM_CHUNK]) for i in chunks])


def _ssim(a: FloatRows, b: FloatRows) -> NDArray[np.float64]:
    # One call for many pictures is faster than a call for each: they are stacked to a tall picture.
    # A border of its mirror image around each picture keeps the windows inside from its neighbours.
    border = ((0, 0), (0, 0), (_SSIM_RADIUS, _SSIM_RADIUS), (_SSIM_RADIUS, _SSIM_RADIUS))
    first, second = (np.pad(rows.astype(np.float64), border, mode="symmetric") for rows in (a, b))
    structural: Any = structural_similarity  # scikit-image has no type annotations
    _, similarity = structural(
        first.reshape(-1, first.shape[-1]),
        second.reshape(-1, second.shape[-1]),
        data_range=_RANGE,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # Cut the border at each end, and the positions whose window leaves the picture.
    cuts = [_SSIM_RADIUS + min(_SSIM_RADIUS, (length - 1) // 2) for length in a.shape[2:]]
    rows, columns = (
        slice(cut, length - cut) for cut, length in zip(cuts, first.shape[2:], strict=True)
    )
    mean: NDArray[np.float64] = similarity.reshape(first.shape)[:, :, rows, columns].mean((1, 2, 3))
    return mean


def nearest(queries: Levels, references: Levels) -> NDArray[np.float64]:
    """Distance of every query (N, …) to its nearest reference (M, …): root mean square, in units of
    rows, (N,).

    If both are the same array, a picture does not count as its own neighbour.
    """
    flat = torch.from_numpy(queries).flatten(1).float()
    best = torch.full((len(flat),), torch.inf)
    index = torch.zeros(len(flat), dtype=torch.int64)
    for start in range(0, len(references), _CHUNK):
        part = torch.from_numpy(references[start : start + _CHUNK]).flatten(1).float()
        distances = torch.cdist(flat, part)
        if queries is references:
            distances[start : start + _CHUNK].fill_diagonal_(torch.inf)
        value, column = distances.min(1)
        index = torch.where(value < best, start + column, index)
        best = torch.minimum(best, value)
    # `cdist` finds the neighbour, but loses the digits of small distances: compute those again.
    chosen = references[index.numpy()].reshape(len(flat), -1)
    distance: NDArray[np.float64] = np.sqrt(np.square(flat.double().numpy() - chosen).mean(1))
    return distance * (_RANGE / 255.0)
