"""The network f for pictures of any size: it changes only what must change.

There is no bottleneck, so f is no generator: it restores. No layer looks at the whole picture, so a
picture can be cut into tiles that overlap. A tile is computed as a part of the whole picture is,
except near its edges.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.training.crisp import Crisp
from model_export.training.network import Autoencoder, NetworkConfig

_LEVEL: Final = 1 / 127.5
_KEEP: Final = 14 * _LEVEL  # a pixel that f would change by less keeps its value
# up to the change that f makes in full; a jump would magnify rounding errors without limit
_RAMP: Final = 8 * _LEVEL
_END_RAMP: Final = 5 * _LEVEL  # before black and white, which f makes in any case
_SLOPE: Final = 0.1
_DARKEST_SHADOW: Final = 0.35  # of the light of paper without shadow
_PALEST: Final = 0.1  # ink: its darkness on white paper
_DARK: Final = 0.75  # ink of this darkness is not stretched
_GRAIN: Final = 1.3  # ink is three times as dark, in units of the paper's grain
_BRANCH: Final = 0.2  # scale of the initial weights of a block's sum


def _active(x: Tensor) -> Tensor:
    """Leaky: with plain ReLUs all channels of a level died in training, and f became a change of
    contrast.
    """
    return functional.leaky_relu(x, _SLOPE)


def space_to_depth_convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3×3 convolution whose output has 2×2 pixels as channels: (B, C, H, W) → (B, 4·D, H/2, W/2).

    The input may have them as channels too, (B, 4·C, H/2, W/2); H and W are even. The sums are the
    same. onnxruntime computes 16 channels at a time: with few channels at the full side most of
    them would be empty.
    """
    moved = [
        functional.pad(layer.weight, (1 + j, 2 - j, 1 + i, 2 - i)) for i in (0, 1) for j in (0, 1)
    ]
    # (4·D, C, 6, 6): of the 6×6 pixels around each 2×2
    weight = torch.stack(moved, 1).flatten(0, 1)
    bias = layer.get_parameter("bias").repeat_interleave(4)
    if x.shape[1] == layer.in_channels:
        return functional.conv2d(x, weight, bias, stride=2, padding=2)
    return functional.conv2d(x, functional.pixel_unshuffle(weight, 2), bias, padding=1)


def normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """The picture divided by its background, then stretched to its ink: (B, 1, H, W) → the same,
    and for each pixel the certainty that ink is near, (B, 1, H, W) in [0, 1].

    H and W are multiples of 16. The background is a morphological closing (Serra, 1982): the
    picture without dark parts that are narrower than 20 pixels; but where it is much darker than
    that of the next 400 pixels, it is no shadow. Ink is as dark as the darkest parts of the next
    400 pixels, in a mean that the dark ones dominate. Where these are pale and hardly darker than
    grain is, there is no ink. White paper and black ink stay in every bit.
    """
    light = (functional.avg_pool2d(x.float(), 2) + 1.0) / 2.0
    near = _closed(functional.avg_pool2d(light, 2), 5)
    far = _closed(functional.avg_pool2d(near, 4), 25)
    background = torch.maximum(near, _DARKEST_SHADOW * _enlarged(far, 4)).clamp_min(_LEVEL)
    ink = 1.0 + functional.max_pool2d(-light, 2) / background
    darkest = functional.max_pool2d(ink, 4).clamp(_LEVEL, 1.0)
    mean = _around(darkest**5) / _around(darkest**4)
    # the difference between neighbours, in a mean that smooth places dominate
    grain = functional.avg_pool2d(ink - 1.0 + functional.max_pool2d(light, 2) / background, 4)
    by_grain = mean * _around(1.0 / (grain + _LEVEL)) / _GRAIN - 2.0
    # nothing but ink is darker than 0.4
    inked = torch.maximum(by_grain, 10.0 * mean - 3.0).clamp(0.0, 1.0)
    contrast = _enlarged(mean.clamp(_PALEST, _DARK) / _DARK, 4)
    # 1 − (1 − light/background)/contrast, as a line in x
    slope = functional.avg_pool2d(1.0 / (contrast * background), 2)
    level = functional.avg_pool2d(1.0 / (contrast * background) + 1.0 - 2.0 / contrast, 2)
    paper = (x * _enlarged(slope, 8) + _enlarged(level, 8)).clamp(-1.0, 1.0)
    return paper, _enlarged(inked, 16)


def _closed(x: Tensor, side: int) -> Tensor:
    """Without dark parts that are narrower than the side of a square: (B, C, H, W) → the same."""
    widened = functional.max_pool2d(x, side, 1, side // 2)
    return -functional.max_pool2d(-widened, side, 1, side // 2)


def _around(x: Tensor) -> Tensor:
    """The mean of the squares of side 25 around all places: (B, C, H, W) → the same."""
    lines = functional.avg_pool2d(x, (25, 1), 1, (12, 0), count_include_pad=False)
    return functional.avg_pool2d(lines, (1, 25), 1, (0, 12), count_include_pad=False)


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(
        x, scale_factor=float(factor), mode="bilinear", align_corners=False
    )


class Block(nn.Module):
    """x + g(x), with two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → the same."""
        return x + self.second(_active(self.first(x)))


class Restorer(nn.Module):
    """f: (B, 1, H, W) in [−1, 1] → the same; H and W are multiples of 2**len(widths) and of 16.

    A pyramid: ``widths`` are the channels at 1/2, 1/4, … of the side, ``full`` those at the full
    side. It sees the picture and the `normalised` one. For each pixel it proposes a mixture of both
    and a change of that: pictures are no paper with ink. Paper without ink becomes white. `forward`
    makes a change of the picture that is large, or that ends in black or white, and leaves other
    pixels as they are, bit for bit. So clean paper and clean ink are fixed points. No row depends
    on others.
    """

    def __init__(self, widths: tuple[int, ...], full: int) -> None:
        super().__init__()
        first, *_, last = widths
        self.stem = nn.Conv2d(2, first, 6, 2, 2)
        self.refine = nn.Conv2d(first, first, 3, 1, 1)
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(_SLOPE), Block(b))
            for a, b in steps
        )
        self.middle = Block(last)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.joined = nn.ModuleList(
            Block(a) if i else nn.Conv2d(a, a, 3, 1, 1) for i, (a, _) in enumerate(steps)
        )
        self.enlarge = nn.Conv2d(first, 4 * full, 3, 1, 1)
        self.full = nn.Conv2d(2, full, 3, 1, 1)
        self.sharpen = nn.Conv2d(full, full, 3, 1, 1)
        self.change = nn.Conv2d(full, 2, 3, 1, 1)
        self.apply(_initialise)

    def propose(self, x: Tensor) -> Tensor:
        """The picture with all changes, (B, 1, H, W); it can leave [−1, 1]."""
        paper, inked = normalised(x)
        both = torch.cat([x, paper], 1)
        sides = [_active(self.refine(_active(self.stem(both))))]
        for step in self.down:
            sides.append(step(sides[-1]))
        y = self.middle(sides.pop())
        for enlarge, joined, side in zip(
            reversed(self.up), reversed(self.joined), reversed(sides), strict=True
        ):
            y = joined(side + functional.interpolate(enlarge(y), scale_factor=2.0, mode="nearest"))
        y = _active(self.enlarge(_active(y)) + space_to_depth_convolution(self.full, both))
        y = _active(space_to_depth_convolution(self.sharpen, y))
        change, share = (
            functional.pixel_shuffle(space_to_depth_convolution(self.change, y), 2)
            .float()
            .chunk(2, 1)
        )
        proposed = x + change + share * (paper - x)
        return inked * proposed + (1.0 - inked)

    def forward(self, x: Tensor) -> Tensor:
        """Apply f once. In training it makes every change, and gradients pass the bounds of the
        range.
        """
        proposed = self.propose(x)
        bounded = proposed.clamp(-1.0, 1.0)
        return (
            proposed + (bounded - proposed).detach() if self.training else self.settle(x, bounded)
        )

    @staticmethod
    def settle(x: Tensor, proposed: Tensor) -> Tensor:
        """Of a proposed picture in [−1, 1], take the changes of x that are large or end in black or
        white.
        """
        large = ((proposed - x).abs() - _KEEP) / _RAMP
        end = (proposed.abs() - (1.0 - _END_RAMP)) / _END_RAMP
        share = torch.maximum(large, end).clamp(0.0, 1.0)
        return (x + share * (proposed - x)).clamp(-1.0, 1.0)


Network = Autoencoder | Crisp | Restorer


def build_network(config: NetworkConfig) -> Network:
    """The untrained network of a configuration."""
    config.sizes()
    if config.full:
        return Restorer(config.widths, config.full)
    return Crisp(config) if config.palette else Autoencoder(config)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        # A convolution of kernel 1 has no activation behind it.
        slope = 1.0 if module.kernel_size == (1, 1) else _SLOPE
        nn.init.kaiming_normal_(module.weight, slope)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    scaled = {Block: "second", Restorer: "change"}.get(type(module))
    if scaled:
        module.get_submodule(scaled).get_parameter("weight").data.mul_(_BRANCH)
