"""Image corruptions, one function each (the word is that of ImageNet-C: Hendrycks and Dietterich,
arXiv 1903.12261).

The functions take pictures (N, C, H, W) float32 in [−1, 1] and their parameters. They are used in
two ways:

- `corrupt`: random parameters for every row, for the projection term in training.
- `corruptions_for`: fixed parameters, for evaluation and figures.
  They are deterministic: picture i always gets noise i.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from service.domain.latents import FloatRows

CorruptionName = Literal["noise", "blur", "low_resolution", "hole", "grey", "sketch"]

Corruption = Callable[[FloatRows], FloatRows]
"""Pictures (N, C, H, W) float32 in [−1, 1] → corrupted copies. Only noise leaves the range."""

# Ranges of the random parameters in training.
_NOISE_SIGMA: Final = (0.0, 1.2)  # in the units of [−1, 1]
_BLUR_SIGMA: Final = (0.3, 2.0)  # pixels of a 28-pixel side
_FACTORS: Final = (2, 3, 4)  # of down-sampling
_HOLE_SHARE: Final = (0.2, 0.5)  # of the side
_SKETCH_SIGMA: Final = (1.75, 5.25)  # pixels of a 64-pixel side; the IGN paper uses 3.5

# Strengths are stated for a picture side of this many pixels and scaled to the actual side.
_BLUR_SIDE: Final = 28
_SKETCH_SIDE: Final = 64

_TRUNCATE: Final = 3.0  # radius of a Gaussian kernel in units of its largest σ, in training
_EIGHT_BIT: Final = 0.5  # share of the rows that are rounded to 8 bits
_CHUNK: Final = 512  # pictures that are corrupted at once in evaluation: bounds memory


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur that repeats the pixels at the edges; sigma (N,) in pixels, 2·radius
    + 1 taps.
    """
    n, channels, height, width = x.shape
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    # (N·C, 2·radius + 1)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # A grouped convolution blurs every picture with its own kernel: one picture of N·C channels,
    # N·C groups.
    planes = x.reshape(1, n * channels, height, width)
    planes = functional.pad(planes, (radius, radius, radius, radius), mode="replicate")
    planes = functional.conv2d(planes, kernel[:, None, None, :], groups=n * channels)
    planes = functional.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    return planes.reshape(x.shape)


def reduce_resolution(x: Tensor, factor: int) -> Tensor:
    """Average down to 1/factor of the side, then enlarge by repeating pixels."""
    side = [max(1, length // factor) for length in x.shape[2:]]
    small = functional.interpolate(x, size=side, mode="area")
    return functional.interpolate(small, size=x.shape[2:], mode="nearest-exact")


def to_grey(x: Tensor) -> Tensor:
    """Replace every channel by the mean of the channels (g of the IGN paper, appendix)."""
    return x.mean(1, keepdim=True).expand_as(x)


def to_sketch(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Return g(x + 1)/(blur(g(x + 1)) + 1e-10) − 1, clipped to [−1, 1] (the IGN paper, appendix); g
    as in `to_grey`.
    """
    light = x.mean(1, keepdim=True) + 1.0
    lines = light / (gaussian_blur(light, sigma, radius) + 1e-10) - 1.0
    return lines.clamp(-1.0, 1.0).expand_as(x)


def round_to_8_bits(x: Tensor) -> Tensor:
    """Clip to [−1, 1] and round to the 256 levels that a picture file holds."""
    return ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() / 127.5 - 1.0


def corrupt(
    x: Tensor, names: Sequence[CorruptionName], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Corrupt every row of x (B, C, H, W) in one of several ways, with random strength.

    The corruptions are equally likely; a name that is listed twice is twice as likely. Half of the
    rows are rounded to 8 bits, like uploaded pictures; in others noise leaves [−1, 1]. Returns
    copies, and the index (B,) of the name of each.
    """
    device = generator.device
    count = len(x)
    # The order of the draws is part of the reproducibility of a run.
    strength = torch.rand((count, 1), generator=generator, device=device)
    normal = torch.randn(x.shape, generator=generator, device=device)
    position = torch.rand((count, 2), generator=generator, device=device)
    kind = torch.randint(len(names), (count,), generator=generator, device=device)
    eight_bit = torch.rand((count,), generator=generator, device=device) < _EIGHT_BIT
    uniform = torch.cat([strength, position], 1)
    out = x.clone()
    for i, name in enumerate(names):
        rows = (kind == i).nonzero()[:, 0]
        if name == "noise":
            sigma = _scale(uniform[rows, 0], _NOISE_SIGMA)[:, None, None, None]
            out[rows] = x[rows] + sigma * normal[rows]
        elif len(rows):
            out[rows] = RANDOM[name](x[rows], uniform[rows])
    return torch.where(eight_bit[:, None, None, None], round_to_8_bits(out), out), kind


def _random_resolution(x: Tensor, uniform: Tensor) -> Tensor:
    chosen = (uniform[:, 0] * len(_FACTORS)).long()
    reduced = torch.stack([reduce_resolution(x, factor) for factor in _FACTORS])
    return reduced[chosen, torch.arange(len(x), device=x.device)]


def _random_hole(x: Tensor, uniform: Tensor) -> Tensor:
    share = _scale(uniform[:, 0], _HOLE_SHARE)
    inside = []
    for length, position in zip(x.shape[2:], uniform[:, 1:].T, strict=True):
        side = (share * length).round().clamp_min(1.0)
        first = (position * (length - side + 1.0)).floor()[:, None]
        index = torch.arange(length, device=x.device)[None]
        inside.append((index >= first) & (index < first + side[:, None]))  # (N, length)
    rows, columns = inside
    # mid-range grey
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


RANDOM: Final[Mapping[CorruptionName, Callable[[Tensor, Tensor], Tensor]]] = {
    "blur": lambda x, u: gaussian_blur(x, *_random_kernel(x, u, _BLUR_SIGMA, _BLUR_SIDE)),
    "low_resolution": _random_resolution,
    "hole": _random_hole,
    "grey": lambda x, _: to_grey(x),
    "sketch": lambda x, u: to_sketch(x, *_random_kernel(x, u, _SKETCH_SIGMA, _SKETCH_SIDE)),
}
"""The corruptions without noise, as functions of pictures (N, C, H, W) and of uniform numbers (N,
3).
"""


def _scale(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    return uniform * (bounds[1] - bounds[0]) + bounds[0]


def _random_kernel(
    x: Tensor, uniform: Tensor, bounds: tuple[float, float], side: int
) -> tuple[Tensor, int]:
    """σ of every row in pixels of x, and one radius that suits the largest σ."""
    scale = x.shape[2] / side
    return _scale(uniform[:, 0], bounds) * scale, max(1, math.ceil(_TRUNCATE * bounds[1] * scale))


def noise(sigma: float) -> Corruption:
    """Gaussian noise x + σ·n, not clipped, as in training and in the IGN paper."""

    def apply(x: FloatRows) -> FloatRows:
        generators = (np.random.Generator(np.random.Philox(key=i)) for i in range(len(x)))
        noisy = [
            row + sigma * g.standard_normal(row.shape) for row, g in zip(x, generators, strict=True)
        ]
        return np.stack(noisy).astype(np.float32)

    return apply


def in_8_bits(corruption: Corruption) -> Corruption:
    """The same corruption, then clipped and rounded as a picture file stores it."""
    rounded = _fixed(round_to_8_bits)
    return lambda x: rounded(corruption(x))


def hole_mask(shape: Sequence[int]) -> NDArray[np.bool_]:
    """The pixels that `hole_0.4` hides in pictures of this shape (…, H, W): (H, W), true in a
    centred square of 0.4 of the side.
    """
    height, width = shape[-2:]
    rows, columns = (slice(round(0.3 * s), round(0.7 * s)) for s in (height, width))
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[rows, columns] = True
    return mask


def _kernel(x: Tensor, sigma: float, side: int) -> tuple[Tensor, int]:
    """σ of every row in pixels of x, and the radius of its kernel."""
    pixels = sigma * x.shape[-1] / side
    return torch.full((len(x),), pixels), max(1, math.ceil(_TRUNCATE * pixels))


def _fixed(function: Callable[[Tensor], Tensor]) -> Corruption:
    def apply(x: FloatRows) -> FloatRows:
        chunks = torch.split(torch.from_numpy(np.ascontiguousarray(x)), _CHUNK)
        return torch.cat([function(chunk) for chunk in chunks]).contiguous().numpy()

    return apply


CORRUPTIONS: Final[Mapping[str, Corruption]] = {
    "noise_0.8": noise(0.8),
    "noise_0.8_8bit": in_8_bits(noise(0.8)),
    "noise_0.4_8bit": in_8_bits(noise(0.4)),
    "blur_1.5": _fixed(lambda x: gaussian_blur(x, *_kernel(x, 1.5, _BLUR_SIDE))),
    "low_resolution_4": _fixed(lambda x: reduce_resolution(x, 4)),
    "hole_0.4": _fixed(lambda x: x.masked_fill(torch.from_numpy(hole_mask(x.shape)), 0.0)),
}
_COLOUR_CORRUPTIONS: Final[Mapping[str, Corruption]] = {
    "grey": _fixed(to_grey),
    "sketch_3.5": _fixed(lambda x: to_sketch(x, *_kernel(x, 3.5, _SKETCH_SIDE))),
}


def corruptions_for(channels: int) -> Mapping[str, Corruption]:
    """The corruptions by which `evaluate` measures restoration, by name."""
    return {**CORRUPTIONS, **(_COLOUR_CORRUPTIONS if channels == 3 else {})}
