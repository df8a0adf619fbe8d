"""The network f for pictures that are sharp after one step: it generates in the code, and draws
with a palette.

f(x) = draw(c), c = read(x) + g(x)·(invent(x) − read(x)), without skip connections. `read` finds the
code of a picture or of what is left of one, `invent` makes a code of noise, and the gate g tells
noise from anything else. So noise has a short way of its own to a code, and codes can be compared
with those of pictures by hundreds, without drawing them.

Vectors are images of one pixel: see `Dense`.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.training.drifting import moments
from model_export.training.network import (
    Dense,
    NetworkConfig,
    Residual,
    Styled,
    group_norm,
    halvings,
    zeroed,
)

NUMBERS: Final = 4  # of noise at every place of the code
_HIDDEN: Final = 384  # of the dense residual of a code
_GATE: Final = 32
_WIDTH: Final = 512  # of `_Invent`
_GROUPS: Final = 24
_VECTORS: Final = 32  # of each group, of which a sample chooses one
_STYLE: Final = 192  # numbers that describe a picture as a whole
_ZOOM: Final = 2  # of the last layer
# of logits: exp stays in half precision, and e^16 between two colours is as good as one
_CLAMP: Final = 8.0
_PIXELS: Final = 20_000
_ROUNDS: Final = 15  # of k-means


class _Read(nn.Module):
    """Pictures (B, C, H, W) → codes (B, code, side, side) before their tanh, and logits (B, 1, 1,
    1) of the gate.
    """

    def __init__(self, config: NetworkConfig, side: int) -> None:
        super().__init__()
        last = config.widths[-1]
        code = config.bottleneck
        self.body = nn.Sequential(*halvings(config), Residual(last))
        self.head = nn.Sequential(group_norm(last), nn.SiLU(), nn.Conv2d(last, code, 1))
        # Dense over all places, so that the parts of a picture agree.
        self.whole = nn.Sequential(
            Dense(code, _HIDDEN, side), nn.SiLU(), zeroed(Dense(_HIDDEN, code * side**2))
        )
        self.gate = nn.Sequential(Dense(2 * last, _GATE), nn.SiLU(), Dense(_GATE, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        code = self.head(features)
        return code + self.whole(code).view_as(code), self.gate(moments(features)[:, :, None, None])


class _Invent(nn.Module):
    """Numbers (B, 4, side, side) → codes (B, code, side, side) before their tanh.

    Each group chooses one of its vectors, and a free part is added.
    """

    basis: Tensor

    def __init__(self, config: NetworkConfig, side: int) -> None:
        super().__init__()
        square = config.size // side
        self._code = (config.bottleneck, side, side)
        # Orthonormal, so that the numbers of normal noise are exactly normal.
        pixels = torch.randn(
            (config.channels * square**2, NUMBERS), generator=torch.Generator().manual_seed(0)
        )
        basis = torch.linalg.qr(pixels)[0].T.reshape(NUMBERS, config.channels, square, square)
        self.register_buffer("basis", basis.contiguous())
        self.first = Dense(NUMBERS, _WIDTH, side)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, _WIDTH), Dense(_WIDTH, _WIDTH), nn.SiLU(), Dense(_WIDTH, _WIDTH)
            )
            for _ in range(2)
        )
        self.last = nn.GroupNorm(1, _WIDTH)
        self.choose = Dense(_WIDTH, _GROUPS * _VECTORS)
        self.vectors = Dense(_GROUPS * _VECTORS, config.bottleneck * side**2)
        self.free = Dense(_WIDTH, config.bottleneck * side**2)
        scales = {
            self.choose: 2.0 / _WIDTH**0.5,
            self.vectors: 0.6 / _GROUPS**0.5,
            self.free: 0.3 / _WIDTH**0.5,
        }
        for layer, scale in scales.items():
            nn.init.normal_(layer.weight, std=scale)

    def numbers(self, z: Tensor) -> Tensor:
        """What counts of latents (B, C, H, W)."""
        return functional.conv2d(z, self.basis, stride=self.basis.shape[-1])

    def forward(self, numbers: Tensor) -> Tensor:
        h = self.first(numbers)
        for layer in self.layers:
            h = h + layer(h)
        h = self.last(h)
        chosen = (
            self.choose(h).view(-1, _GROUPS, _VECTORS).softmax(2).view(-1, _GROUPS * _VECTORS, 1, 1)
        )
        code: Tensor = self.vectors(chosen) + self.free(h)
        return code.view(-1, *self._code)


class _Draw(nn.Module):
    """Codes (B, code, side, side) → pictures (B, C, H, W).

    Each pixel mixes colours that are chosen for the whole picture, so flat areas are flat. Bilinear
    enlargement leaves no checkerboard.
    """

    def __init__(self, config: NetworkConfig, side: int) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self._channels = config.channels
        self._colours = config.palette
        self.style = nn.Sequential(
            Dense(config.bottleneck, _STYLE, side), nn.SiLU(), Dense(_STYLE, _STYLE), nn.SiLU()
        )
        self.first = nn.Conv2d(config.bottleneck, widths[0], 3, 1, 1)
        self.blocks = nn.ModuleList(Residual(width, _STYLE) for width in widths)
        self.enlarge = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.last = Styled(widths[-1], _STYLE)
        self.mix = nn.Conv2d(widths[-1], _ZOOM**2 * config.palette, 3, 1, 1)
        self.palette = Dense(_STYLE, config.channels * config.palette)
        nn.init.normal_(self.palette.weight, std=0.02)

    def forward(self, code: Tensor) -> Tensor:
        style = self.style(code)
        h = self.first(code)
        for depth, block in enumerate(self.blocks):
            if depth:
                h = functional.interpolate(
                    self.enlarge[depth - 1](h), scale_factor=2.0, mode="bilinear"
                )
            h = block(h, style)
        # A softmax over the colours for each of 2×2 pixels. It comes before they are put in place,
        # and as the quotient of a product: onnxruntime would take a fifth of the time of f for a
        # softmax over channels.
        shares = self.mix(self.last(h, style)).float()
        side = shares.shape[-1]
        shares = shares.clamp(-_CLAMP, _CLAMP).view(-1, self._colours, _ZOOM**2 * side**2).exp()
        colours = torch.tanh(self.palette(style).float()).view(-1, self._channels, self._colours)
        with torch.autocast(code.device.type, enabled=False):  # bfloat16 would round colours
            sums = functional.pad(colours, (0, 0, 0, 1), value=1.0) @ shares
        mixed = sums[:, :-1] / sums[:, -1:]
        return functional.pixel_shuffle(
            mixed.view(-1, _ZOOM**2 * self._channels, side, side), _ZOOM
        )

    @torch.no_grad()
    def fit_palette(self, pictures: Tensor, generator: torch.Generator) -> None:
        """Begin with the colours of pictures (N, C, H, W): k-means of their pixels."""
        pixels = pictures.movedim(1, -1).flatten(0, -2)
        pixels = pixels[
            torch.randperm(len(pixels), generator=generator, device=pixels.device)[:_PIXELS]
        ]
        colours = pixels[: self._colours]
        for _ in range(_ROUNDS):
            nearest = torch.cdist(pixels, colours).argmin(1)
            chosen = functional.one_hot(nearest, self._colours).to(pixels.dtype).T
            counts = chosen.sum(1, keepdim=True)
            colours = torch.where(counts > 0, chosen @ pixels / counts.clamp_min(1), colours)
        self.palette.get_parameter("bias").copy_(
            torch.atanh(colours.clamp(-0.97, 0.97)).T.flatten()
        )


class Crisp(nn.Module):
    """f: (B, C, H, W) in [−1, 1] → (B, C, H, W) in [−1, 1]. The side of the code is that after all
    halvings.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        side = config.sizes()[-1]
        self.numbers = (NUMBERS, side, side)
        self.read, self.invent, self.draw = (
            _Read(config, side),
            _Invent(config, side),
            _Draw(config, side),
        )

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` finds, bounded (B, bottleneck, side, side), and the logit of the gate (B, 1,
        1, 1).
        """
        code, gate = self.read(x)
        return torch.tanh(code.float()), gate.float()

    def invented(self, numbers: Tensor) -> Tensor:
        """Bounded codes of standard normal numbers (B, *self.numbers)."""
        return torch.tanh(self.invent(numbers).float())

    def forward(self, x: Tensor) -> Tensor:
        """Apply f once."""
        code, gate = self.code(x)
        drawn: Tensor = self.draw(
            code + gate.sigmoid() * (self.invented(self.invent.numbers(x)) - code)
        )
        return drawn
