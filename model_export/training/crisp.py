"""The network f for pictures that are sharp after one step: it generates in the code, and draws
with a palette.

f(x) = draw(c), c = read(x) + g(x)·(invent(x) − read(x)), without skip connections. `read` finds the
code of a picture or of what is left of one, `invent` makes a code of noise, and the gate g tells
noise from anything else. So noise has a short way of its own to a code, and codes can be compared
with those of pictures by hundreds, without drawing them.

Vectors are images of one pixel: see `Dense`.
"""

from itertools import pairwise
from typing import Final, cast

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
FORMS: Final = 2048  # of each part
_CROSSING: Final = 0.2  # deviation of a part from the form that it becomes
_CHUNK: Final = 512  # pictures that are read at once


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


def _means(points: Tensor, count: int) -> Tensor:
    """k-means of points (N, D), which begins with the first ones: (count, D)."""
    means = points[:count]
    for _ in range(_ROUNDS):
        nearest = torch.cdist(points, means).argmin(1)
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=count)[:, None]
        means = torch.where(counts > 0, sums / counts.clamp_min(1), means)
    return means


class _Part(nn.Module):
    """Invented codes (B, code, side, side) → codes in which one part looks like that of a picture.

    A continuous map of noise passes from one form of a mouth to the next through mixtures of both.
    Here the part becomes the nearest of the forms that pictures have, so the crossing is narrow.
    Until `fit`, codes stay as they are.
    """

    forms: Tensor
    known: Tensor  # 1 after `fit`, before it 0

    def __init__(self, code: int, place: tuple[int, int, int, int]) -> None:
        super().__init__()
        self._row, self._column, self._height, self._width = place
        self.register_buffer("forms", torch.zeros(FORMS, code * self._height * self._width))
        self.register_buffer("known", torch.zeros(()))

    def forward(self, code: Tensor) -> Tensor:
        part = self._of(code)
        # the negative squared distance, but for what all forms share
        near = functional.linear(part, 2 * self.forms, -self.forms.square().sum(1))
        form = (near / (2 * _CROSSING**2)).softmax(1) @ self.forms
        change = (form - part).view(-1, code.shape[1], self._height, self._width)
        right = code.shape[3] - self._column - self._width
        below = code.shape[2] - self._row - self._height
        return code + self.known * functional.pad(change, (self._column, right, self._row, below))

    def fit(self, codes: Tensor) -> None:
        """Learn the forms from codes of pictures (N, code, side, side), N ≥ `FORMS`."""
        self.forms.copy_(_means(self._of(codes), FORMS))
        self.known.fill_(1)

    def _of(self, code: Tensor) -> Tensor:
        rows = slice(self._row, self._row + self._height)
        return code[:, :, rows, self._column : self._column + self._width].flatten(1)


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
        shares = shares.clamp(-_CLAMP, _CLAMP).reshape(-1, self._colours, _ZOOM**2 * side**2).exp()
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
        colours = _means(pixels, self._colours)
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
        self.parts = nn.Sequential(*(_Part(config.bottleneck, place) for place in config.parts))

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` finds, bounded (B, bottleneck, side, side), and the logit of the gate (B, 1,
        1, 1).
        """
        code, gate = self.read(x)
        return torch.tanh(code.float()), gate.float()

    def invented(self, numbers: Tensor) -> Tensor:
        """Bounded codes of standard normal numbers (B, *self.numbers)."""
        return self.parts(torch.tanh(self.invent(numbers).float()))

    @torch.no_grad()
    def fit_parts(self, pictures: Tensor) -> None:
        """Learn the forms of parts from pictures (N, C, H, W), N ≥ `FORMS`."""
        codes = torch.cat([self.code(each)[0] for each in torch.split(pictures, _CHUNK)])
        for part in self.parts:
            cast(_Part, part).fit(codes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply f once."""
        code, gate = self.code(x)
        return self.draw(code + gate.sigmoid() * (self.invented(self.invent.numbers(x)) - code))
