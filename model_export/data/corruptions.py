"""Ways to spoil pictures while training, for the projection term; each row has random parameters of its own.

Pictures are (n, C, H, W) float32 in [−1, 1]. A way to spoil them is a function of the pictures, of uniform numbers
(n, 3) in [0, 1) (strength, and two for a place) and of standard normal noise of the pictures' shape. The draws are
made for a whole batch at once, so that ranks and micro-batches only pick their rows. `model_export.data.numpy_corruptions` has
the fixed ones that restoration is measured by.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from model_export.training.distributed import Ranks
from model_export.training.presets import Degradation, Preset

_BLUR: Final = (0.3, 2.0)  # σ in pixels of a 28-pixel side
_BLUR_SIDE: Final = 28
_FACTORS: Final = (2, 3, 4)  # of down-sampling
_HOLE: Final = (0.2, 0.5)  # share of the side
_SKETCH: Final = (1.75, 5.25)  # σ in pixels of a 64-pixel side; the paper's is 3.5
_SKETCH_SIDE: Final = 64
_REACH: Final = 3.0  # of a Gaussian kernel, in σ


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The randomness of one batch.

    Args:
        uniform: (B, 3) strength, and two for a place.
        normal: (B, C, H, W).
        kind: (B,) index of the degradation.
        eight_bit: (B,) whether the row is rounded as a picture file holds it.
    """

    uniform: Tensor
    normal: Tensor
    kind: Tensor
    eight_bit: Tensor

    def own(self, ranks: Ranks) -> "Draws":
        """This rank's rows."""
        return Draws(*(ranks.own(part) for part in (self.uniform, self.normal, self.kind, self.eight_bit)))


def draw(preset: Preset, batch: int, generator: torch.Generator) -> Draws:
    """What :func:`degraded` needs for a batch."""
    device = generator.device
    # Strength and noise come first: with noise alone, they are all that decides.
    strength = torch.rand((batch, 1), generator=generator, device=device)
    normal = torch.randn((batch, *preset.shape), generator=generator, device=device)
    place = torch.rand((batch, 2), generator=generator, device=device)
    kind = torch.randint(len(preset.degradations), (batch,), generator=generator, device=device)
    eight_bit = torch.rand((batch,), generator=generator, device=device) < preset.eight_bit
    return Draws(torch.cat([strength, place], 1), normal, kind, eight_bit)


def degraded(x: Tensor, preset: Preset, draws: Draws) -> Tensor:
    """Every row spoiled in one of the preset's ways; noise may leave the range where the row is not 8-bit."""
    out = x.clone()
    for i, name in enumerate(preset.degradations):
        rows = (draws.kind == i).nonzero()[:, 0]
        if not len(rows):
            continue
        if name == "noise":
            out[rows] = noise(x[rows], draws.uniform[rows], draws.normal[rows], *preset.noise_range)
        else:
            out[rows] = SPOIL[name](x[rows], draws.uniform[rows])
    return torch.where(draws.eight_bit[:, None, None, None], eight_bit(out), out) if preset.eight_bit else out


def noise(x: Tensor, uniform: Tensor, normal: Tensor, low: float, high: float) -> Tensor:
    """X + s·n, n ~ N(0, 1), s uniform in low…high."""
    return x + _between(uniform[:, 0], low, high)[:, None, None, None] * normal


def blur(x: Tensor, uniform: Tensor) -> Tensor:
    """Gaussian blur."""
    return _gaussian(x, uniform[:, 0], _BLUR, _BLUR_SIDE)


def low_resolution(x: Tensor, uniform: Tensor) -> Tensor:
    """Averaged down to a half, a third or a quarter of the side, and enlarged by repeating pixels."""
    chosen = (uniform[:, 0] * len(_FACTORS)).long()
    out = x.clone()
    for i, factor in enumerate(_FACTORS):
        rows = (chosen == i).nonzero()[:, 0]
        if not len(rows):
            continue
        side = [max(1, length // factor) for length in x.shape[2:]]
        small = functional.interpolate(x[rows], size=side, mode="area")
        out[rows] = functional.interpolate(small, size=x.shape[2:], mode="nearest-exact")
    return out


def hole(x: Tensor, uniform: Tensor) -> Tensor:
    """A square at mid-range grey, anywhere in the picture."""
    share = _between(uniform[:, 0], *_HOLE)
    inside = torch.ones_like(x[:, :1], dtype=torch.bool)
    for axis, place in ((2, uniform[:, 1]), (3, uniform[:, 2])):
        length = x.shape[axis]
        side = (share * length).round().clamp_min(1.0)
        first = (place * (length - side + 1.0)).floor()[:, None]
        along = torch.arange(length, device=x.device)[None]
        within = (along >= first) & (along < first + side[:, None])  # (n, length)
        inside &= within[:, None, :, None] if axis == 2 else within[:, None, None, :]
    return x.masked_fill(inside, 0.0)


def grey(x: Tensor, _: Tensor) -> Tensor:
    """The mean of the channels in each of them (the paper, appendix); grey pictures stay as they are."""
    return x.mean(1, keepdim=True).expand_as(x)


def sketch(x: Tensor, uniform: Tensor) -> Tensor:
    """g(x + 1)/(blur(g(x + 1)) + 1e-10) − 1 with g the mean of the channels (the paper, appendix), cut to the range."""
    light = x.mean(1, keepdim=True) + 1.0
    lines = light / (_gaussian(light, uniform[:, 0], _SKETCH, _SKETCH_SIDE) + 1e-10) - 1.0
    return lines.clamp(-1.0, 1.0).expand_as(x)


def eight_bit(x: Tensor) -> Tensor:
    """As a picture file holds it: cut to [−1, 1], rounded to 256 levels."""
    return ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() / 127.5 - 1.0


SPOIL: Final[Mapping[Degradation, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {"blur": blur, "low_resolution": low_resolution, "hole": hole, "grey": grey, "sketch": sketch}
)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return uniform * (high - low) + low


def _gaussian(x: Tensor, uniform: Tensor, span: tuple[float, float], side: int) -> Tensor:
    """Separable Gaussian blur, edges repeated, with σ in ``span`` pixels of a picture of that ``side``."""
    n, channels, height, width = x.shape
    scale = height / side
    radius = max(1, math.ceil(_REACH * span[1] * scale))
    sigma = _between(uniform, *span)[:, None] * scale
    along = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (along / sigma).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (n·C, 2·radius + 1)
    # As one picture of n·C channels, each convolved with a kernel of its own.
    rows = x.reshape(1, n * channels, height, width)
    rows = functional.pad(rows, (radius, radius, radius, radius), mode="replicate")
    rows = functional.conv2d(rows, kernel[:, None, None, :], groups=n * channels)
    rows = functional.conv2d(rows, kernel[:, None, :, None], groups=n * channels)
    return rows.reshape(x.shape)
