"""The network f: a DCGAN-style autoencoder, image → image, without skip connections.

A U-Net's skips let f copy its input, which solves reconstruction and idempotence without generating anything
(Shocher et al., 2024, arXiv 2311.01462, section 4). So every image passes a 1×1 bottleneck.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

Norm = Literal["group", "batch"]
Activation = Literal["silu", "dcgan"]  # dcgan: leaky ReLU 0.2 on the way down, ReLU on the way up
Upsampling = Literal["transposed", "resize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Size and make of f.

    Args:
        size: height and width of the image, ≥ 8.
        channels: 1 or 3.
        widths: channels after each stride-2 convolution.
        bottleneck: channels of the 1×1 bottleneck.
        norm: `group` keeps f a pure function of its own row; `batch` is the paper's, and depends on the batch.
        groups: groups of the group norm.
        activation: `silu`, or the paper's `dcgan`.
        upsampling: `transposed` convolutions as in the paper, or nearest `resize` + convolution (no checkerboards).
    """

    size: int
    channels: int
    widths: tuple[int, ...]
    bottleneck: int
    norm: Norm = "group"
    groups: int = 8
    activation: Activation = "silu"
    upsampling: Upsampling = "transposed"

    def sizes(self) -> list[int]:
        """Spatial size before each stride-2 convolution and after the last: floor halving (k4 s2 p1)."""
        sizes = [self.size]
        for _ in self.widths:
            sizes.append(sizes[-1] // 2)
        if sizes[-1] < 1:
            raise ValueError(f"size {self.size} is too small for {len(self.widths)} halvings")
        return sizes


class Autoencoder(nn.Module):
    """f: (B, C, H, W) in [−1, 1] → the same.

    Down: k4 s2 p1 convolutions, then one that spans what is left to 1×1; up: its mirror; tanh. Normalised everywhere
    but at the first convolution, the bottleneck and the last, as in the paper.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        sizes = config.sizes()
        channels = (config.channels, *config.widths)
        layers: list[nn.Module] = []
        for depth, (a, b) in enumerate(pairwise(channels)):
            layers.append(nn.Conv2d(a, b, 4, 2, 1))
            if depth:
                layers.append(_norm(config, b))
            layers.append(_activation(config, down=True))
        layers += [_ToPixel(channels[-1], config.bottleneck, sizes[-1]), _activation(config, down=True)]
        self.encoder = nn.Sequential(*layers)

        layers = [_FromPixel(config.bottleneck, channels[-1], sizes[-1])]
        for depth in range(len(config.widths), 0, -1):
            layers += [_norm(config, channels[depth]), _activation(config, down=False)]
            layers += _upsample(config, channels[depth], channels[depth - 1], sizes[depth - 1])
        self.decoder = nn.Sequential(*layers)
        self.apply(_initialise)

    def codes(self, x: Tensor) -> list[Tensor]:
        """What the encoder sees at every scale but its first, the bottleneck last: (B, c, h, w) each."""
        codes = []
        for layer in self.encoder:
            x = layer(x)
            if isinstance(layer, nn.SiLU | nn.LeakyReLU):
                codes.append(x)
        return codes[1:]

    def forward(self, x: Tensor) -> Tensor:
        """One step of f."""
        # Under bfloat16 autocast the last tanh stays in float32: its rounding would show up as drift.
        return torch.tanh(self.decoder(self.encoder(x)).float())


class _ToPixel(nn.Conv2d):
    """A convolution that spans its whole input, to one pixel.

    In training it is computed as the matrix product that it is: on CPUs the gradient of the convolution's weights takes
    25 times as long. Exported it stays a convolution, which onnxruntime computes row by row, whatever the batch.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if torch.compiler.is_exporting():
            return super().forward(input)
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class _FromPixel(nn.ConvTranspose2d):
    """A transposed convolution of one pixel; see `_ToPixel`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        if torch.compiler.is_exporting():
            return super().forward(input, output_size)
        y = functional.linear(input.flatten(1), self.weight.flatten(1).T).view(-1, *self.weight.shape[1:])
        return y if self.bias is None else y + self.bias[:, None, None]


def _norm(config: NetworkConfig, channels: int) -> nn.Module:
    if config.norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(min(config.groups, channels), channels)


def _activation(config: NetworkConfig, *, down: bool) -> nn.Module:
    if config.activation == "silu":
        return nn.SiLU()
    return nn.LeakyReLU(0.2) if down else nn.ReLU()


def _upsample(config: NetworkConfig, a: int, b: int, size: int) -> list[nn.Module]:
    if config.upsampling == "resize":
        return [nn.Upsample(size=(size, size), mode="nearest"), nn.Conv2d(a, b, 3, 1, 1)]
    return [nn.ConvTranspose2d(a, b, 4, 2, 1, output_padding=size % 2)]


def _initialise(module: nn.Module) -> None:
    # The paper's N(0, 0.02) starves a network without batch norm at this depth; He keeps the signal's scale.
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.2, mode="fan_in")
        if isinstance(module, nn.ConvTranspose2d):
            # fan_in of a transposed convolution is out·k², its real one in·k²/s².
            scale = (module.weight.shape[1] * module.stride[0] ** 2 / module.weight.shape[0]) ** 0.5
            with torch.no_grad():
                module.weight.mul_(scale)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def parameter_count(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy of ``network``; call ``update_parameters(network)`` after every step.

    The decay warms up as min(decay, (1 + n)/(10 + n)), so that the first averages are not mostly the start. Buffers
    (batch norm's statistics) are copied, not averaged.
    """

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return average.lerp(current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=update)
