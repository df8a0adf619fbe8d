"""How well f restores corrupted pictures, compared with the corrupted input and with classical
methods.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, inpaint_biharmonic, wiener
from torch.nn import functional

from model_export.data.corruptions import COLOUR_CORRUPTIONS, CORRUPTIONS, Corruption, hole_mask
from model_export.evaluation.classifier import Classifier, Table, sample_budget
from model_export.evaluation.metrics import psnr
from service.artifact.pixels import Levels, to_levels, to_rows
from service.domain.latents import FloatRows

Picture = NDArray[np.float64]

# as in scikit-image's example of non-local means
_PATCH: Final = {"patch_size": 5, "patch_distance": 6}
Function = Callable[[FloatRows], FloatRows]
Grid = Mapping[str, Corruption]
"""Settings of a method in words → corrupted rows (N, C, H, W) → restored rows."""
# held-out pictures of 28×28: classical methods take up to 5 ms for one
BASELINE_PICTURES: Final = 1000
# training pictures of 28×28 on which the parameters of a method are chosen
TUNING_PICTURES: Final = 64
PROTOCOL: Final = (
    "the pictures of `real`; PSNR and SSIM (Gaussian window) against the clean picture; "
    "with_mask: kept pixels are put back after every step; baselines: the first n of them, f "
    "and the degraded picture (input) on the same; methods know the noise's σ, the blur's "
    "kernel, the hole's place; their settings are the best of a grid by PSNR on training "
    "pictures"
)


def non_local_means(sigma: float) -> Grid:
    """Means over similar patches (Buades et al., 2005). The grid varies h, whether σ is given, and
    the patch weights.

    Without σ the method is better if the noise was clipped at the ends of the range.
    """
    known_as = {sigma: "given", 0.0: "not given"}
    patches = {False: "Gaussian", True: "uniform"}
    return {
        f"h {share} σ, σ {known_as[known]}, {patches[fast]} patches": _per_picture(
            denoise_nl_means, h=share * sigma, sigma=known, fast_mode=fast, **_PATCH
        )
        for fast in (False, True)
        for known in (sigma, 0.0)
        for share in (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2)
    }


def bicubic(factor: int) -> Grid:
    """Enlarges the averages by cubic convolution with a = −0.5 (Keys, 1981)."""

    def restore(x: FloatRows) -> FloatRows:
        side = tuple(max(1, length // factor) for length in x.shape[2:])
        small = functional.interpolate(torch.from_numpy(x), size=side, mode="nearest-exact")
        # In PyTorch `antialias` selects the kernel with a = −0.5; it smooths only when it reduces.
        large = functional.interpolate(small, size=x.shape[2:], mode="bicubic", antialias=True)
        out: FloatRows = large.numpy()
        return out

    return {"": restore}


def biharmonic(share: float) -> Grid:
    """Fills the hole with a smooth surface (Damelin and Hoang, 2018)."""
    return {"": lambda x: _per_picture(inpaint_biharmonic, mask=hole_mask(share, x.shape))(x)}


def tune(grid: Grid, corrupted: FloatRows, clean: FloatRows) -> tuple[str, Corruption]:
    """The setting that restores these pictures with the highest mean PSNR."""
    if len(grid) == 1:
        return next(iter(grid.items()))
    return max(
        grid.items(), key=lambda item: psnr(to_rows(to_levels(item[1](corrupted))), clean).mean()
    )


def _per_picture(method: Callable[..., Picture], **options: Any) -> Corruption:
    def restore(x: FloatRows) -> FloatRows:
        # A single channel is passed without its axis: non-local means would return it transposed.
        pictures, axis = (x[:, 0], None) if x.shape[1] == 1 else (x, 0)
        restored = [
            method(picture.astype(np.float64), channel_axis=axis, **options) for picture in pictures
        ]
        return np.stack(restored).reshape(x.shape).astype(np.float32)

    return restore


def _wiener(sigma: float, balance: float) -> Corruption:
    """Wiener filter with the Gaussian kernel of the blur, σ in pixels of a 28-pixel side, and a
    Laplacian prior.
    """

    def restore(x: FloatRows) -> FloatRows:
        pixels = sigma * x.shape[-1] / 28
        radius = int(np.ceil(4 * pixels))
        kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
        kernel[radius, radius] = 1.0
        kernel = gaussian_filter(kernel, pixels)
        method: Callable[..., Picture] = wiener
        height, width = x.shape[2:]
        # The filter assumes periodic pictures. A picture beside its mirror image is periodic
        # without a jump.
        mirrored = np.pad(
            x.astype(np.float64), ((0, 0), (0, 0), (0, height), (0, width)), mode="symmetric"
        )
        planes = (
            method(plane, kernel, balance) for plane in mirrored.reshape(-1, 2 * height, 2 * width)
        )
        return np.stack([*planes])[:, :height, :width].reshape(x.shape).astype(np.float32)

    return restore


BASELINES: Final[Mapping[str, Mapping[str, Grid]]] = {
    **{
        name: {
            "non_local_means": non_local_means(sigma),
            "total_variation": {  # Chambolle, 2004
                f"weight {share} σ": _per_picture(denoise_tv_chambolle, weight=share * sigma)
                for share in (0.25, 0.5, 0.75, 1.0)
            },
        }
        for name, sigma in (("noise_0.8", 0.8), ("noise_0.8_8bit", 0.8), ("noise_0.4_8bit", 0.4))
    },
    "blur_1.5": {
        "wiener": {
            f"balance {balance:g}, kernel given": _wiener(1.5, balance)
            for balance in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
        }
    },
    "low_resolution_4": {"bicubic": bicubic(4)},
    "hole_0.4": {"biharmonic": biharmonic(0.4)},
}
"""Name of a corruption in `CORRUPTIONS` → name of a method → its grid."""


class Restoration:
    """Measures f and the baselines on held-out pictures; the baselines are tuned on training
    pictures.
    """

    def __init__(
        self,
        f: Function,
        classifier: Classifier,
        held_out: Levels,
        truth: NDArray[np.int64] | None,
        train: Levels,
    ) -> None:
        shape = held_out.shape[1:]
        self._f = f
        self._classifier = classifier
        self._truth = truth
        self._x = to_rows(held_out)
        self._n_baseline = sample_budget(BASELINE_PICTURES, shape)
        self._tuning = to_rows(train[: sample_budget(TUNING_PICTURES, shape)])

    def run(self, names: Sequence[str] = (), *, baselines: bool = True) -> Table:
        """Measures by corruption and by way of restoration; of all corruptions if none is named."""
        corruptions = {**CORRUPTIONS, **(COLOUR_CORRUPTIONS if self._x.shape[1] == 3 else {})}
        chosen = {name: corruptions[name] for name in names or corruptions}
        return {name: self._measure(name, corrupt, baselines) for name, corrupt in chosen.items()}

    def _measure(self, name: str, corrupt: Corruption, baselines: bool) -> Table:
        corrupted = corrupt(self._x)
        once = self._f(corrupted)
        table = {
            "input": self._compare(corrupted),
            "f": self._compare(once),
            "f2": self._compare(self._f(once)),
        }
        if name == "hole_0.4":
            mask = hole_mask(0.4, corrupted.shape)
            masked = {
                name: self._masked(corrupted, mask, steps) for name, steps in (("f", 1), ("f4", 4))
            }
            table["with_mask"] = {name: self._compare(rows) for name, rows in masked.items()}
        if baselines and name in BASELINES:
            few = corrupted[: self._n_baseline]
            once = once[: self._n_baseline]
            group: Table = {"n": len(few), "input": self._compare(few), "f": self._compare(once)}
            for method, grid in BASELINES[name].items():
                setting, restore = tune(grid, corrupt(self._tuning), self._tuning)
                group[method] = {
                    **self._compare(restore(few)),
                    **({"setting": setting} if setting else {}),
                }
            table["baselines"] = group
        return table

    def _masked(self, corrupted: FloatRows, mask: NDArray[np.bool_], steps: int) -> FloatRows:
        """Apply f ``steps`` times; after every step the pixels outside the mask are put back, as
        `/project` does.
        """
        rows = corrupted
        for _ in range(steps):
            rows = np.where(mask, self._f(rows), corrupted)
        return rows

    def _compare(self, rows: FloatRows) -> Table:
        truth = None if self._truth is None else self._truth[: len(rows)]
        return self._classifier.compare(rows, self._x[: len(rows)], truth)
