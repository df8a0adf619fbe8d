"""Classical restoration, which no training precedes: what f has to be better than.

They are told what f is not: the strength of the noise, the kernel of the blur, the place of the hole. Where a method
has settings, a grid of them is given, and the one that restores training pictures best is measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, inpaint_biharmonic, wiener
from torch.nn import functional

from model_export.data.numpy_corruptions import Degradation, hole_mask
from model_export.data.pixels import to_levels, to_rows
from model_export.evaluation.metrics import psnr
from service.domain.latents import FloatRows

Picture = NDArray[np.float64]

_SIDE: Final = 28  # the picture side that blur is stated for
_PATCH: Final = {"patch_size": 5, "patch_distance": 6}  # of non-local means, as in scikit-image's examples


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to restore pictures (N, C, H, W).

    Args:
        text: its parameters, for people; "" where there are none.
        restore: degraded rows → restored ones.
    """

    text: str
    restore: Degradation


Methods = Mapping[str, Sequence[Setting]]


def non_local_means(sigma: float) -> Iterator[Setting]:
    """Averages over similar patches (Buades et al., 2005), σ of the noise known or left out, filtering h a multiple.

    Leaving σ out is the better choice where noise was cut off at the ends of the range.
    """
    for fast in (False, True):
        for known in (sigma, 0.0):
            for share in (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2):
                options = {"h": share * sigma, "sigma": known, "fast_mode": fast, **_PATCH}
                text = (
                    f"h {share} σ, σ {'given' if known else 'not given'}, {'uniform' if fast else 'Gaussian'} patches"
                )
                yield Setting(text, _each(denoise_nl_means, **options))


def total_variation(sigma: float) -> Iterator[Setting]:
    """Least total variation near the picture (Chambolle, 2004)."""
    for share in (0.25, 0.5, 0.75, 1.0):
        yield Setting(f"weight {share} σ", _each(denoise_tv_chambolle, weight=share * sigma))


def deconvolution(sigma: float) -> Iterator[Setting]:
    """The Wiener filter with the Gaussian kernel of the blur, σ in pixels of a 28-pixel side, and a Laplacian prior."""
    for balance in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        yield Setting(f"balance {balance:g}, kernel given", _wiener(sigma, balance))


def bicubic(factor: int) -> Iterator[Setting]:
    """The averages, enlarged by cubic convolution with a = −0.5 (Keys, 1981)."""

    def restore(x: FloatRows) -> FloatRows:
        side = tuple(max(1, length // factor) for length in x.shape[2:])
        small = functional.interpolate(torch.from_numpy(x), size=side, mode="nearest-exact")
        # `antialias` chooses the kernel; enlarging has nothing to smooth.
        large = functional.interpolate(small, size=x.shape[2:], mode="bicubic", antialias=True)
        out: FloatRows = large.numpy()
        return out

    yield Setting("", restore)


def biharmonic(share: float) -> Iterator[Setting]:
    """A smooth surface over the hole (Damelin and Hoang, 2018)."""

    def restore(x: FloatRows) -> FloatRows:
        return _each(inpaint_biharmonic, mask=hole_mask(share, x.shape))(x)

    yield Setting("", restore)


def best(settings: Sequence[Setting], degraded: FloatRows, clean: FloatRows) -> Setting:
    """The setting that restores these pictures with the highest mean PSNR."""
    if len(settings) == 1:
        return settings[0]
    return max(settings, key=lambda setting: psnr(to_rows(to_levels(setting.restore(degraded))), clean).mean())


def _each(method: Callable[..., Picture], **options: Any) -> Degradation:
    """A method of scikit-image on one picture after the other, all channels at once."""

    def restore(x: FloatRows) -> FloatRows:
        # A single channel has no axis of its own: non-local means would hand it back transposed.
        pictures, axis = (x[:, 0], None) if x.shape[1] == 1 else (x, 0)
        restored = [method(picture.astype(np.float64), channel_axis=axis, **options) for picture in pictures]
        return np.stack(restored).reshape(x.shape).astype(np.float32)

    return restore


def _wiener(sigma: float, balance: float) -> Degradation:
    def restore(x: FloatRows) -> FloatRows:
        pixels = sigma * x.shape[-1] / _SIDE
        radius = int(np.ceil(4 * pixels))
        kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
        kernel[radius, radius] = 1.0
        kernel = gaussian_filter(kernel, pixels)
        method: Callable[..., Picture] = wiener
        height, width = x.shape[2:]
        # The filter takes a picture to go on at the opposite side: mirrored, it goes on as it ends.
        mirrored = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (0, height), (0, width)), mode="symmetric")
        planes = (method(plane, kernel, balance) for plane in mirrored.reshape(-1, 2 * height, 2 * width))
        return np.stack([*planes])[:, :height, :width].reshape(x.shape).astype(np.float32)

    return restore


def _denoisers(sigma: float) -> Methods:
    return {"non_local_means": (*non_local_means(sigma),), "total_variation": (*total_variation(sigma),)}


CLASSICAL: Final[Mapping[str, Methods]] = MappingProxyType(
    {
        "noise_0.8": _denoisers(0.8),
        "noise_0.8_8bit": _denoisers(0.8),
        "noise_0.4_8bit": _denoisers(0.4),
        "blur_1.5": {"wiener": (*deconvolution(1.5),)},
        "low_resolution_4": {"bicubic": (*bicubic(4),)},
        "hole_0.4": {"biharmonic": (*biharmonic(0.4),)},
    }
)
"""Degradation, by its name in `DEGRADATIONS` → method → its settings."""
