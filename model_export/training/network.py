"""The network f: a DCGAN-style autoencoder, image → image, without skip connections.

A U-Net's skips let f copy its input, which solves reconstruction and idempotence without generating
anything (Shocher et al., 2024, arXiv 2311.01462, section 4). Here every image passes a bottleneck
of one pixel.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from model_export.training.blocks import Blocks

_GROUPS = 8  # of the group norm, which computes every row independently of its batch


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Architecture of f."""

    size: int  # height and width of the image, ≥ 8
    channels: int  # 1 or 3
    widths: tuple[int, ...]  # channels after each stride-2 convolution
    bottleneck: int  # channels of the bottleneck
    # side of the blocks of `model_export.training.blocks.Blocks` behind the decoder; 0: none
    blocks: int = 0
    # Channels at the full side of a `model_export.training.restorer.Restorer`, which has no
    # bottleneck and no size of its own; 0: another network.
    full: int = 0
    # colours of a picture of a `model_export.training.crisp.Crisp`; 0: another network
    palette: int = 0
    # Parts of the code of a `Crisp` (row, column, height, width) that become what pictures have
    # there, such as a mouth
    parts: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def kind(self) -> Literal["autoencoder", "crisp", "restorer"]:
        """Which network it is."""
        if self.full:
            return "restorer"
        return "crisp" if self.palette else "autoencoder"

    def sizes(self) -> list[int]:
        """Height before each stride-2 convolution and after the last one; each halves it, rounding
        down.
        """
        sizes = [self.size]
        for _ in self.widths:
            sizes.append(sizes[-1] // 2)
        if sizes[-1] < 1:
            raise ValueError(f"size {self.size} is too small for {len(self.widths)} halvings")
        if (self.full or self.palette) and self.size % 2 ** len(self.widths):
            raise ValueError(f"size {self.size} is no multiple of {2 ** len(self.widths)}")
        if self.blocks and self.size % self.blocks:
            raise ValueError(
                f"size {self.size} is no multiple of {self.blocks}, the side of its blocks"
            )
        return sizes


class Autoencoder(nn.Module):
    """f: (B, C, H, W) in [−1, 1] → (B, C, H, W) in [−1, 1].

    The encoder has convolutions with kernel 4, stride 2, padding 1, then one that covers the
    remaining image and yields one pixel. The decoder mirrors it and ends with tanh. As in the
    paper, every layer is normalised except the first convolution, the bottleneck and the last
    layer.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        sizes = config.sizes()
        channels = (config.channels, *config.widths)
        last = channels[-1]
        side = sizes[-1]
        self.encoder = nn.Sequential(
            *halvings(config), Dense(last, config.bottleneck, side), nn.SiLU()
        )

        layers: list[nn.Module] = [_GlobalConvTranspose(config.bottleneck, last, side)]
        for depth in range(len(config.widths), 0, -1):
            a = channels[depth]
            b = channels[depth - 1]
            odd = sizes[depth - 1] % 2
            layers += [
                group_norm(a),
                nn.SiLU(),
                nn.ConvTranspose2d(a, b, 4, 2, 1, output_padding=odd),
            ]
        self.decoder = nn.Sequential(*layers)
        self.blocks = Blocks(config.channels, config.blocks) if config.blocks else None
        self.apply(_initialise)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations (B, c, h, w) at every scale of the encoder, from a quarter of the side of x
        on.
        """
        features = []
        for layer in self.encoder:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                features.append(x)
        return features[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Apply f once."""
        # The last tanh runs in float32 also under bfloat16 autocast: its rounding would appear as
        # drift of f(f(z)).
        y = self.decoded(x)
        return y if self.blocks is None else self.blocks(x, y)

    def decoded(self, x: Tensor) -> Tensor:
        """What the autoencoder makes of x, before `Blocks`."""
        return torch.tanh(self.decoder(self.encoder(x)).float())


def halvings(config: NetworkConfig) -> list[nn.Module]:
    """The convolutions of stride 2 that begin an encoder, with what follows each."""
    layers: list[nn.Module] = []
    for depth, (a, b) in enumerate(pairwise((config.channels, *config.widths))):
        layers += [nn.Conv2d(a, b, 4, 2, 1), *([group_norm(b)] if depth else []), nn.SiLU()]
    return layers


class Dense(nn.Conv2d):
    """A convolution whose kernel covers the whole input (B, C, side, side), so its output is one
    pixel.

    It is computed as the equivalent matrix product. On CPUs the gradient of the convolution's
    weights takes 25 times as long, and onnxruntime reads the weights of the convolution once for
    each row. The bits of a row depend on the batch size in neither.
    """

    def __init__(self, inputs: int, outputs: int, side: int = 1) -> None:
        super().__init__(inputs, outputs, side)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(B, inputs, side, side) → (B, outputs, 1, 1)."""
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[
            :, :, None, None
        ]


class _GlobalConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution of an input of one pixel; see `Dense`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        y = functional.linear(input.flatten(1), self.weight.flatten(1).T).view(
            -1, *self.weight.shape[1:]
        )
        return y if self.bias is None else y + self.bias[:, None, None]


class Styled(nn.Module):
    """Group norm and SiLU; a style, if there is one, scales and shifts the channels between
    them.
    """

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.change = zeroed(Dense(style, 2 * channels)) if style else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """(B, channels, h, w), (B, style, 1, 1) → (B, channels, h, w)."""
        x = self.norm(x)
        if self.change is not None:
            scale, shift = self.change(style).chunk(2, 1)
            x = x * (1 + scale) + shift
        return functional.silu(x)


class Residual(nn.Module):
    """x + two normalised 3×3 convolutions of x (He et al., 2016, arXiv 1603.05027), the second one
    `Styled`.
    """

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1)
        )
        self.styled = Styled(channels, style)
        self.last = zeroed(nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """(B, channels, h, w), (B, style, 1, 1) → (B, channels, h, w)."""
        return x + self.last(self.styled(self.first(x), style))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, which at first adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(channels: int) -> nn.Module:
    """The normalisation of every network, of each row by itself."""
    # Two channels a group at least: one alone would lose the bias before it, whose gradient is
    # rounding error.
    return nn.GroupNorm(min(_GROUPS, channels // 2), channels)


def _initialise(module: nn.Module) -> None:
    # The paper's N(0, 0.02) makes the signal vanish in a network of this depth without batch norm;
    # He initialisation keeps its scale.
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.2, mode="fan_in")
        if isinstance(module, nn.ConvTranspose2d):
            # PyTorch takes out·k² for the fan-in of a transposed convolution; its effective fan-in
            # is in·k²/s².
            scale = (module.weight.shape[1] * module.stride[0] ** 2 / module.weight.shape[0]) ** 0.5
            with torch.no_grad():
                module.weight.mul_(scale)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def averaged_model(network: nn.Module) -> AveragedModel:
    """An exponential moving average of the weights; call ``update_parameters(network)`` after every
    step.

    The decay at update n is min(0.999, (1 + n)/(10 + n)), so that the initial weights lose their
    influence early.
    """

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return average.lerp(current, 1.0 - min(0.999, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=update)
