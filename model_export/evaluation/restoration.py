"""How well f restores corrupted pictures, compared with the corrupted input and with classical methods."""

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

from model_export.data.corruptions import COLOUR_CORRUPTIONS, CORRUPTIONS, Corruption, hole_mask
from model_export.evaluation.classifier import ClassifierEvaluator, Table, sample_budget
from model_export.evaluation.metrics import psnr
from service.artifact.pixels import Levels, to_levels, to_rows
from service.domain.latents import FloatRows

Picture = NDArray[np.float64]

_BLUR_SIDE: Final = 28  # the strength of a blur is stated for this picture side
_PATCH: Final = {"patch_size": 5, "patch_distance": 6}  # as in scikit-image's example of non-local means
Function = Callable[[FloatRows], FloatRows]
BASELINE_PICTURES: Final = 1000  # held-out pictures of 28×28: classical methods take up to 5 ms for one
TUNING_PICTURES: Final = 64  # training pictures of 28×28 on which the parameters of a method are chosen
_HOLES: Final = {"hole_0.4": 0.4}
_MASKED_STEPS: Final = (("f", 1), ("f4", 4))
PROTOCOL: Final = (
    "the pictures of `real`; PSNR and SSIM (Gaussian window) against the clean picture; with_mask: kept pixels are put "
    "back after every step; baselines: the first n of them, f and the degraded picture (input) on the same; "
    "methods know the noise's σ, the blur's kernel, the hole's place; their settings are the best of a grid by PSNR on "
    "training pictures"
)


@dataclass(frozen=True, slots=True)
class GridPoint:
    """A restoration method with fixed parameters."""

    text: str  # the parameters, for people; empty if there are none
    restore: Corruption  # corrupted rows (N, C, H, W) → restored rows


Methods = Mapping[str, Sequence[GridPoint]]


def non_local_means(sigma: float) -> Iterator[GridPoint]:
    """Means over similar patches (Buades et al., 2005). The grid varies h, whether σ is given, and the patch weights.

    Without σ the method is better if the noise was clipped at the ends of the range.
    """
    for fast in (False, True):
        for known in (sigma, 0.0):
            for share in (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2):
                options = {"h": share * sigma, "sigma": known, "fast_mode": fast, **_PATCH}
                text = (
                    f"h {share} σ, σ {'given' if known else 'not given'}, {'uniform' if fast else 'Gaussian'} patches"
                )
                yield GridPoint(text, _per_picture(denoise_nl_means, **options))


def total_variation(sigma: float) -> Iterator[GridPoint]:
    """Total variation denoising (Chambolle, 2004)."""
    for share in (0.25, 0.5, 0.75, 1.0):
        yield GridPoint(f"weight {share} σ", _per_picture(denoise_tv_chambolle, weight=share * sigma))


def deconvolution(sigma: float) -> Iterator[GridPoint]:
    """Wiener filter with the Gaussian kernel of the blur, σ in pixels of a 28-pixel side, and a Laplacian prior."""
    for balance in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        yield GridPoint(f"balance {balance:g}, kernel given", _wiener(sigma, balance))


def bicubic(factor: int) -> Iterator[GridPoint]:
    """Enlarges the averages by cubic convolution with a = −0.5 (Keys, 1981)."""

    def restore(x: FloatRows) -> FloatRows:
        side = tuple(max(1, length // factor) for length in x.shape[2:])
        small = functional.interpolate(torch.from_numpy(x), size=side, mode="nearest-exact")
        # In PyTorch `antialias` selects the kernel with a = −0.5; it smooths only when it reduces.
        large = functional.interpolate(small, size=x.shape[2:], mode="bicubic", antialias=True)
        out: FloatRows = large.numpy()
        return out

    yield GridPoint("", restore)


def biharmonic(share: float) -> Iterator[GridPoint]:
    """Fills the hole with a smooth surface (Damelin and Hoang, 2018)."""

    def restore(x: FloatRows) -> FloatRows:
        return _per_picture(inpaint_biharmonic, mask=hole_mask(share, x.shape))(x)

    yield GridPoint("", restore)


def tune(grid: Sequence[GridPoint], corrupted: FloatRows, clean: FloatRows) -> GridPoint:
    """The point of the grid that restores these pictures with the highest mean PSNR."""
    if len(grid) == 1:
        return grid[0]
    return max(grid, key=lambda point: psnr(to_rows(to_levels(point.restore(corrupted))), clean).mean())


def _per_picture(method: Callable[..., Picture], **options: Any) -> Corruption:
    """Apply a method of scikit-image to one picture after the other, with all its channels."""

    def restore(x: FloatRows) -> FloatRows:
        # A single channel is passed without its axis: non-local means would return it transposed.
        pictures, axis = (x[:, 0], None) if x.shape[1] == 1 else (x, 0)
        restored = [method(picture.astype(np.float64), channel_axis=axis, **options) for picture in pictures]
        return np.stack(restored).reshape(x.shape).astype(np.float32)

    return restore


def _wiener(sigma: float, balance: float) -> Corruption:
    def restore(x: FloatRows) -> FloatRows:
        pixels = sigma * x.shape[-1] / _BLUR_SIDE
        radius = int(np.ceil(4 * pixels))
        kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
        kernel[radius, radius] = 1.0
        kernel = gaussian_filter(kernel, pixels)
        method: Callable[..., Picture] = wiener
        height, width = x.shape[2:]
        # The filter assumes periodic pictures. A picture beside its mirror image is periodic without a jump.
        mirrored = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (0, height), (0, width)), mode="symmetric")
        planes = (method(plane, kernel, balance) for plane in mirrored.reshape(-1, 2 * height, 2 * width))
        return np.stack([*planes])[:, :height, :width].reshape(x.shape).astype(np.float32)

    return restore


def _denoisers(sigma: float) -> Methods:
    return {"non_local_means": (*non_local_means(sigma),), "total_variation": (*total_variation(sigma),)}


BASELINES: Final[Mapping[str, Methods]] = MappingProxyType(
    {
        "noise_0.8": _denoisers(0.8),
        "noise_0.8_8bit": _denoisers(0.8),
        "noise_0.4_8bit": _denoisers(0.4),
        "blur_1.5": {"wiener": (*deconvolution(1.5),)},
        "low_resolution_4": {"bicubic": (*bicubic(4),)},
        "hole_0.4": {"biharmonic": (*biharmonic(0.4),)},
    }
)
"""Name of a corruption in `CORRUPTIONS` → name of a method → its grid."""


class Restoration:
    """Measures f and the baselines on every corruption.

    Args:
        held_out: clean pictures (N, C, H, W).
        labels: their classes (N,) or attributes (N, K), or None.
    """

    def __init__(
        self,
        f: Function,
        *,
        evaluator: ClassifierEvaluator,
        held_out: Levels,
        labels: NDArray[np.int64] | None,
        train: Levels,
    ) -> None:
        shape = held_out.shape[1:]
        self._f, self._evaluator, self._labels = f, evaluator, labels
        self._x = to_rows(held_out)
        self._n_baseline = sample_budget(BASELINE_PICTURES, shape)
        self._tuning = to_rows(train[: sample_budget(TUNING_PICTURES, shape)])

    def run(self) -> Table:
        """Measures of f and of the baselines, by corruption and by way of restoration."""
        corruptions = {**CORRUPTIONS, **(COLOUR_CORRUPTIONS if self._x.shape[1] == 3 else {})}
        return {name: self._measure(name, corrupt) for name, corrupt in corruptions.items()}

    def run_without_baselines(self, names: Sequence[str]) -> Table:
        """Measures of f for some corruptions."""
        return {name: self._measure_f(name, CORRUPTIONS[name](self._x))[0] for name in names}

    def _measure(self, name: str, corrupt: Corruption) -> Table:
        corrupted = corrupt(self._x)
        table, once = self._measure_f(name, corrupted)
        if name not in BASELINES:
            return table
        n = self._n_baseline
        table["baselines"] = self._measure_baselines(BASELINES[name], corrupt, corrupted[:n], once[:n])
        return table

    def _measure_f(self, name: str, corrupted: FloatRows) -> tuple[Table, FloatRows]:
        """Measures of f, and f(corrupted)."""
        once = self._f(corrupted)
        table = {"input": self._compare(corrupted), "f": self._compare(once), "f2": self._compare(self._f(once))}
        if name in _HOLES:
            mask = hole_mask(_HOLES[name], corrupted.shape)
            table["with_mask"] = {
                key: self._compare(self._masked(corrupted, mask, steps)) for key, steps in _MASKED_STEPS
            }
        return table, once

    def _measure_baselines(self, methods: Methods, corrupt: Corruption, corrupted: FloatRows, once: FloatRows) -> Table:
        table: Table = {"n": len(corrupted), "input": self._compare(corrupted), "f": self._compare(once)}
        for name, grid in methods.items():
            point = tune(grid, corrupt(self._tuning), self._tuning)
            table[name] = self._compare(point.restore(corrupted))
            if point.text:
                table[name]["setting"] = point.text
        return table

    def _masked(self, corrupted: FloatRows, mask: NDArray[np.bool_], steps: int) -> FloatRows:
        """Apply f ``steps`` times; after every step the pixels outside the mask are put back, as `/project` does."""
        rows = corrupted
        for _ in range(steps):
            rows = np.where(mask, self._f(rows), corrupted)
        return rows

    def _compare(self, rows: FloatRows) -> Table:
        """Measures of rows against the first clean pictures."""
        labels = None if self._labels is None else self._labels[: len(rows)]
        return self._evaluator.restoration(rows, self._x[: len(rows)], labels)
