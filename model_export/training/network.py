"""The network f: a DCGAN-style autoencoder, image → image, without skip connections.

A U-Net's skips let f copy its input, which solves reconstruction and idempotence without generating anything
(Shocher et al., 2024, arXiv 2311.01462, section 4). Here every image passes a bottleneck of one pixel.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from model_export.training.blocks import Blocks

_GROUPS = 8  # of the group norm, which computes every row independently of its batch
_LEVELS = 15  # of each component of the quantiser, odd: integers around 0; the bound distorts those near the outermost
_RAMP = 1 / 32  # of a level: width of the ramp between two levels of the quantiser
_MARGIN = 0.45  # levels between the outermost level and the bound; below 0.5, so that no level is added
_DEVIATION = 1.5  # levels: standard deviation of the codes of pictures, before the bound
_MIN_UNIT = 1e-4  # of codes without variance


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Architecture of f."""

    size: int  # height and width of the image, ≥ 8
    channels: int  # 1 or 3
    widths: tuple[int, ...]  # channels after each stride-2 convolution
    bottleneck: int  # channels of the bottleneck
    quantizer: int = 0  # number of components of a `ScalarQuantizer` behind the bottleneck; 0: no quantiser
    residual: bool = False  # a residual block at every scale of the decoder
    blocks: int = 0  # side of the blocks of `model_export.training.blocks.Blocks` behind the decoder; 0: none
    # Channels at the full side of a `model_export.training.restorer.Restorer`, which has no bottleneck and no size of
    # its own; 0: another network.
    full: int = 0
    palette: int = 0  # colours of a picture of a `model_export.training.crisp.Crisp`; 0: another network

    def sizes(self) -> list[int]:
        """Height before each stride-2 convolution and after the last one; each halves it, rounding down."""
        sizes = [self.size]
        for _ in self.widths:
            sizes.append(sizes[-1] // 2)
        if sizes[-1] < 1:
            raise ValueError(f"size {self.size} is too small for {len(self.widths)} halvings")
        if (self.full or self.palette) and self.size % 2 ** len(self.widths):
            raise ValueError(f"size {self.size} is no multiple of {2 ** len(self.widths)}")
        if self.blocks and self.size % self.blocks:
            raise ValueError(f"size {self.size} is no multiple of {self.blocks}, the side of its blocks")
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
                layers.append(group_norm(b))
            layers.append(nn.SiLU())
        last, side = channels[-1], sizes[-1]
        layers += [Dense(last, config.bottleneck, side), nn.SiLU()]
        if config.quantizer:
            layers.append(ScalarQuantizer(config.bottleneck, config.quantizer))
        self.encoder = nn.Sequential(*layers)

        layers = [_GlobalConvTranspose(config.bottleneck, last, side)]
        for depth in range(len(config.widths), 0, -1):
            a, b, odd = channels[depth], channels[depth - 1], sizes[depth - 1] % 2
            layers += [Residual(a)] if config.residual else []
            layers += [group_norm(a), nn.SiLU(), nn.ConvTranspose2d(a, b, 4, 2, 1, output_padding=odd)]
        self.decoder = nn.Sequential(*layers)
        self.blocks = Blocks(config.channels, config.blocks) if config.blocks else None
        self.apply(_initialise)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations (B, c, h, w) at every scale of the encoder, from a quarter of the side of x on."""
        features = []
        for layer in self.encoder:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                features.append(x)
        return features[1:]

    @property
    def quantizer(self) -> "ScalarQuantizer":
        """The quantiser of the bottleneck; a `TypeError` if there is none."""
        last = self.encoder[-1]
        if not isinstance(last, ScalarQuantizer):
            raise TypeError("the network has no quantiser")
        return last

    def components(self, x: Tensor) -> Tensor:
        """The components of x (B, C, H, W) before quantisation, in units of a level: (B, components, 1, 1)."""
        return self.quantizer.components(self.encoder[:-1](x))

    @torch.no_grad()
    def fit_quantizer(self, pictures: Tensor, latents: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit the quantiser to the codes of pictures (N, C, H, W), latents (M, C, H, W) and samples.

        Latents have other codes than pictures. If the components described pictures alone, f(z) would be lost.
        """
        encode = self.encoder[:-1]
        others = torch.cat([encode(latents), encode(self(latents))])
        self.quantizer.fit(encode(pictures), others, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply f once."""
        # The last tanh runs in float32 also under bfloat16 autocast: its rounding would appear as drift of f(f(z)).
        y = self.decoded(x)
        return y if self.blocks is None else self.blocks(x, y)

    def decoded(self, x: Tensor) -> Tensor:
        """What the autoencoder makes of x, before `Blocks`."""
        return torch.tanh(self.decoder(self.encoder(x)).float())


class ScalarQuantizer(nn.Module):
    """Finite scalar quantisation of the code, in components that are learned (Mentzer et al., 2023, arXiv 2309.15505).

    An autoencoder has a continuum of near-fixed points. Every application of f moves a picture by a small error along
    that continuum, and nothing corrects it, so the errors of many applications add up. The quantiser corrects them. It
    projects the code linearly to components u, bounds them to u = h·tanh(v/h) in units of a level, and rounds them to
    integers. If the picture that f makes is encoded with errors below half a level, f returns it bit for bit.

    Between two levels the result is not a jump but a ramp of 1/32 of a level. At a jump, the rounding errors of the
    arithmetic would decide the result, and two devices could disagree; a ramp magnifies those errors 32 times at most.

    In the backward pass the rounding is the identity (straight-through estimator, Bengio et al., 2013, arXiv
    1308.3432). Until `fit` is called, the quantiser returns its input.
    """

    fitted: Tensor

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        if not 1 <= components <= channels:
            raise ValueError(f"a quantiser of {channels} channels cannot have {components} components")
        self._bound = (_LEVELS - 1) / 2 + _MARGIN
        self.project = nn.Conv2d(channels, components, 1)
        self.reconstruct = nn.Conv2d(components, channels, 1)
        # 1 after `fit`. It is a buffer because the state dict must tell whether the quantiser is active.
        self.register_buffer("fitted", torch.zeros(()))

    @torch.no_grad()
    def fit(self, pictures: Tensor, others: Tensor, generator: torch.Generator | None = None) -> None:
        """Set the components to a random rotation of the first principal components of the codes.

        The rotation gives all components about the same variance, so one unit fits all: `_DEVIATION` for the codes of
        pictures (N, channels, 1, 1). Their mean gets u = 0. ``others`` (M, channels, 1, 1) are further codes that the
        components shall describe; N + M ≥ channels.
        """
        codes = torch.cat([pictures, others]).flatten(1).double()
        mean = pictures.flatten(1).double().mean(0)
        _, _, vectors = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)
        count = len(self.project.weight)
        normal = torch.randn((count, count), generator=generator, dtype=torch.float64, device=codes.device)
        axes = torch.linalg.qr(normal)[0] @ vectors[:count]
        unit = (pictures.flatten(1).double() @ axes.T).std(0).mean().clamp_min(_MIN_UNIT) / _DEVIATION
        project, reconstruct = axes / unit, axes.T * unit
        for layer, weight, bias in ((self.project, project, -project @ mean), (self.reconstruct, reconstruct, mean)):
            layer.weight.copy_(weight[:, :, None, None])
            if layer.bias is not None:
                layer.bias.copy_(bias)
        self.fitted.fill_(1.0)

    def components(self, code: Tensor) -> Tensor:
        """The bounded components of a code (B, channels, 1, 1), in levels, before rounding: (B, components, 1, 1)."""
        components: Tensor = torch.tanh(self.project(code).float() / self._bound) * self._bound
        return components

    def forward(self, code: Tensor) -> Tensor:
        """Quantise a code: (B, channels, 1, 1) → the same shape."""
        components = self.components(code)
        quantised = round_with_ramps(components)
        if not torch.compiler.is_exporting():
            # The bracket is exactly zero, so the value is exactly the quantised one.
            quantised = quantised.detach() + (components - components.detach())
        out: Tensor = self.reconstruct(quantised)
        # `where` instead of a Python branch: the exported graph must not depend on the value of a buffer.
        return torch.where(self.fitted > 0, out, code)


def round_with_ramps(values: Tensor) -> Tensor:
    """Round to integers, with a ramp of width 1/32 in place of the jump between two integers."""
    integers = values.round()
    offset = values - integers
    edge = (1.0 - _RAMP) / 2
    return integers + (offset - offset.clamp(-edge, edge)) / _RAMP


class Dense(nn.Conv2d):
    """A convolution whose kernel covers the whole input (B, C, side, side), so its output is one pixel.

    It is computed as the equivalent matrix product. On CPUs the gradient of the convolution's weights takes 25 times as
    long, and onnxruntime reads the weights of the convolution once for each row. The bits of a row depend on the batch
    size in neither.
    """

    def __init__(self, inputs: int, outputs: int, side: int = 1) -> None:
        super().__init__(inputs, outputs, side)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(B, inputs, side, side) → (B, outputs, 1, 1)."""
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class _GlobalConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution of an input of one pixel; see `Dense`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        y = functional.linear(input.flatten(1), self.weight.flatten(1).T).view(-1, *self.weight.shape[1:])
        return y if self.bias is None else y + self.bias[:, None, None]


class Styled(nn.Module):
    """Group norm and SiLU; a style, if there is one, scales and shifts the channels between them."""

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
    """x + two normalised 3×3 convolutions of x (He et al., 2016, arXiv 1603.05027), the second one `Styled`."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        self.styled = Styled(channels, style)
        self.last = zeroed(nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """(B, channels, h, w), (B, style, 1, 1) → (B, channels, h, w)."""
        y: Tensor = x + self.last(self.styled(self.first(x), style))
        return y


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, which at first adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(channels: int) -> nn.Module:
    """The normalisation of every network, of each row by itself."""
    # Two channels a group at least: one alone would lose the bias before it, whose gradient is rounding error.
    return nn.GroupNorm(min(_GROUPS, channels // 2), channels)


def _initialise(module: nn.Module) -> None:
    # The paper's N(0, 0.02) makes the signal vanish in a network of this depth without batch norm; He initialisation
    # keeps its scale.
    if isinstance(module, Residual):
        zeroed(module.last)  # it begins as the identity
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.2, mode="fan_in")
        if isinstance(module, nn.ConvTranspose2d):
            # PyTorch takes out·k² for the fan-in of a transposed convolution; its effective fan-in is in·k²/s².
            scale = (module.weight.shape[1] * module.stride[0] ** 2 / module.weight.shape[0]) ** 0.5
            with torch.no_grad():
                module.weight.mul_(scale)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def averaged_model(network: nn.Module) -> AveragedModel:
    """An exponential moving average of the weights; call ``update_parameters(network)`` after every step.

    The decay at update n is min(0.999, (1 + n)/(10 + n)), so that the initial weights lose their influence early.
    """

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return average.lerp(current, 1.0 - min(0.999, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=update)
