"""The network f: a DCGAN-style autoencoder, image → image, without skip connections.

A U-Net's skips let f copy its input, which solves reconstruction and idempotence without generating anything
(Shocher et al., 2024, arXiv 2311.01462, section 4). Here every image passes a bottleneck of one pixel.
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
    """Architecture of f.

    Args:
        size: height and width of the image, ≥ 8.
        channels: 1 or 3.
        widths: channels after each stride-2 convolution.
        bottleneck: channels of the 1×1 bottleneck.
        norm: `group` computes every row independently; with `batch`, the paper's choice, rows depend on the batch.
        groups: number of groups of the group norm.
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
        """Height before each stride-2 convolution and after the last one; each halves it, rounding down."""
        sizes = [self.size]
        for _ in self.widths:
            sizes.append(sizes[-1] // 2)
        if sizes[-1] < 1:
            raise ValueError(f"size {self.size} is too small for {len(self.widths)} halvings")
        return sizes


class Autoencoder(nn.Module):
    """f: (B, C, H, W) in [−1, 1] → (B, C, H, W) in [−1, 1].

    The encoder has convolutions with kernel 4, stride 2, padding 1, then one that covers the remaining image and yields
    one pixel. The decoder mirrors it and ends with tanh. As in the paper, every layer is normalised except the first
    convolution, the bottleneck and the last layer.
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
        layers += [_GlobalConv(channels[-1], config.bottleneck, sizes[-1]), _activation(config, down=True)]
        self.encoder = nn.Sequential(*layers)

        layers = [_GlobalConvTranspose(config.bottleneck, channels[-1], sizes[-1])]
        for depth in range(len(config.widths), 0, -1):
            layers += [_norm(config, channels[depth]), _activation(config, down=False)]
            layers += _upsample(config, channels[depth], channels[depth - 1], sizes[depth - 1])
        self.decoder = nn.Sequential(*layers)
        self.apply(_initialise)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations of the encoder at every scale except the first: (B, c, h, w) each, the bottleneck last."""
        features = []
        for layer in self.encoder:
            x = layer(x)
            if isinstance(layer, nn.SiLU | nn.LeakyReLU):
                features.append(x)
        return features[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Apply f once."""
        # The last tanh runs in float32 also under bfloat16 autocast: its rounding would appear as drift of f(f(z)).
        return torch.tanh(self.decoder(self.encoder(x)).float())


class _GlobalConv(nn.Conv2d):
    """A convolution whose kernel covers the whole input, so its output is one pixel.

    In training it is computed as the equivalent matrix product: on CPUs the gradient of the convolution's weights takes
    25 times as long. The export keeps the convolution, because onnxruntime computes it row by row: the result of a row
    then does not depend on the batch size.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if torch.compiler.is_exporting():
            return super().forward(input)
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class _GlobalConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution of an input of one pixel; see `_GlobalConv`."""

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
    # The paper's N(0, 0.02) makes the signal vanish in a network of this depth without batch norm; He initialisation
    # keeps its scale.
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.2, mode="fan_in")
        if isinstance(module, nn.ConvTranspose2d):
            # PyTorch takes out·k² for the fan-in of a transposed convolution; its effective fan-in is in·k²/s².
            scale = (module.weight.shape[1] * module.stride[0] ** 2 / module.weight.shape[0]) ** 0.5
            with torch.no_grad():
                module.weight.mul_(scale)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def parameter_count(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def averaged_model(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights; call ``update_parameters(network)`` after every step.

    The decay at update n is min(decay, (1 + n)/(10 + n)), so that the initial weights lose their influence early.
    Buffers (the statistics of batch norm) are copied, not averaged.
    """

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return average.lerp(current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=update)
