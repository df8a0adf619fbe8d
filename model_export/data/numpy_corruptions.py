"""Ways to spoil a picture, by which restoration is measured. All are deterministic: picture i always gets noise i."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from model_export.data.pixels import to_levels, to_rows
from service.domain.latents import FloatRows

Degradation = Callable[[FloatRows], FloatRows]
"""Pictures in [−1, 1], (N, C, H, W) float32 → spoiled ones; only noise leaves the range."""

_SIDE: Final = 28  # the picture side that blur is stated for


def noise(sigma: float) -> Degradation:
    """Gaussian noise, x + σ·n, as in training and in the paper: beyond the range where it falls so."""

    def apply(x: FloatRows) -> FloatRows:
        rows = (np.random.Generator(np.random.Philox(key=i)).standard_normal(x.shape[1:]) for i in range(len(x)))
        return np.stack([row + sigma * n for row, n in zip(x, rows, strict=True)]).astype(np.float32)

    return apply


def clipped(degradation: Degradation) -> Degradation:
    """The same as a picture file can hold it: cut to the range, rounded to 8 bits."""

    def apply(x: FloatRows) -> FloatRows:
        return to_rows(to_levels(degradation(x)))

    return apply


def blur(sigma: float) -> Degradation:
    """Gaussian blur, σ in pixels of a 28-pixel side."""

    def apply(x: FloatRows) -> FloatRows:
        out: FloatRows = gaussian_filter(x, sigma * x.shape[-1] / _SIDE, axes=(2, 3), mode="nearest")
        return out

    return apply


def low_resolution(factor: int) -> Degradation:
    """Averaged down to 1/factor of the side and enlarged again by repeating pixels."""

    def apply(x: FloatRows) -> FloatRows:
        side = tuple(max(1, length // factor) for length in x.shape[2:])
        small = functional.interpolate(torch.from_numpy(x), size=side, mode="area")
        out: FloatRows = functional.interpolate(small, size=x.shape[2:], mode="nearest-exact").numpy()
        return out

    return apply


def hole(share: float) -> Degradation:
    """A centred square of this share of the side at mid-range grey."""

    def apply(x: FloatRows) -> FloatRows:
        out = x.copy()
        out[:, :, hole_mask(share, x.shape)] = 0.0
        return out

    return apply


def hole_mask(share: float, shape: Sequence[int]) -> NDArray[np.bool_]:
    """What such a hole hides of pictures of this shape (…, H, W): (H, W), True inside."""
    height, width = shape[-2:]
    rows, columns = (slice(round(s * (1 - share) / 2), round(s * (1 + share) / 2)) for s in (height, width))
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[rows, columns] = True
    return mask


DEGRADATIONS: Final[Mapping[str, Degradation]] = MappingProxyType(
    {
        "noise_0.8": noise(0.8),
        "noise_0.8_8bit": clipped(noise(0.8)),
        "noise_0.4_8bit": clipped(noise(0.4)),
        "blur_1.5": blur(1.5),
        "low_resolution_4": low_resolution(4),
        "hole_0.4": hole(0.4),
    }
)
