"""The last part of an exact f: f(f(x)) = f(x) in every bit, for every x and with any weights.

The reading c of a picture is the means of its blocks, rounded to levels. f chooses a reading, and D
draws the picture D(c), moved just so far that its own reading is c. A picture that D may have drawn
is read; the reading of any other is that of what the autoencoder makes of it. So f(D(c)) = D(c) for
every c, whatever D has learned.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS: Final = 8
# Of the means, over the range −1 … 1. No level is −1 or 1: the outermost ones hold all that is
# darker or lighter. A block of a picture that is black and white, without grey, lies between two
# levels, so it does not pass for one of D.
_UNIT: Final = 2 / _LEVELS
# levels: how far D(c) may be from c. An 8-bit file moves it by 1/255 of the range, 0.016 levels
_NEAR: Final = 0.1
# levels, root mean square: up to here a picture may be one of D; 0.29 for means by chance
_OWN: Final = 0.15
_WIDTH: Final = 24


class Blocks(nn.Module):
    """y = D(c), for a picture x and the autoencoder's y, (B, C, H, W) in [−1, 1]; sides are
    multiples of ``side``.

    In the backward pass D(c) is drawn without being moved, and is y: rounding has no gradient, and
    D is near the identity. Until `fit` is called, it returns y.
    """

    fitted: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.draw = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, channels * side**2, 3, 1, 1),
            nn.PixelShuffle(side),
        )
        self.register_buffer("fitted", torch.zeros(()))

    def read(self, picture: Tensor) -> Tensor:
        """The means of the blocks in levels, 0 … 7, not rounded: (B, C, H/side, W/side)."""
        means = functional.avg_pool2d(picture.float(), self.side)
        return (means / _UNIT + (_LEVELS - 1) / 2).clamp(0.0, _LEVELS - 1.0)

    def own(self, reading: Tensor) -> Tensor:
        """How much nearer to levels a reading is than D's may be, (B, 1, 1, 1): at least 0 for
        those of D.
        """
        between = ((reading > 0.0) & (reading < _LEVELS - 1.0)).float()
        spare = between * _OWN**2 - (reading - reading.round()).square()
        return spare.sum((1, 2, 3), keepdim=True)

    def code(self, x: Tensor, y: Tensor) -> Tensor:
        """The reading that f chooses, before it is rounded."""
        reading = self.read(x)
        return torch.where(self.own(reading) >= 0.0, reading, self.read(y))

    def margin(self, x: Tensor, y: Tensor) -> Tensor:
        """How far, (B,) in levels, f is from a jump: there the rounding errors of a device decide
        on the picture.
        """
        code = self.code(x, y)
        rounding = (code - code.floor() - 0.5).abs().amin((1, 2, 3))
        return torch.minimum(rounding, self.own(self.read(x)).abs().amin((1, 2, 3)))

    def decode(self, code: Tensor) -> Tensor:
        """D(c) of integers c."""
        middle = (_LEVELS - 1) / 2
        drawn = torch.tanh(self.draw((code - middle) / middle).float())
        means = functional.avg_pool2d(drawn, self.side)
        low = torch.where(code > 0.0, (code - middle - _NEAR) * _UNIT, -1.0)
        high = torch.where(code < _LEVELS - 1.0, (code - middle + _NEAR) * _UNIT, 1.0)
        # Towards white or black, so that no value leaves [−1, 1]. No limit is near the end that the
        # other move ends at.
        lighter = functional.relu(low - means) / (1.0 - means).clamp_min(_UNIT / 4)
        darker = functional.relu(means - high) / (1.0 + means).clamp_min(_UNIT / 4)
        lighter, darker = (
            functional.interpolate(each, scale_factor=float(self.side))
            for each in (lighter, darker)
        )
        moved = drawn + lighter * (1.0 - drawn) - darker * (1.0 + drawn)
        return moved if torch.compiler.is_exporting() else moved.detach() + (drawn - drawn.detach())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """f(x), given x and what the autoencoder makes of it."""
        drawn = self.decode(self.code(x, y).round().detach())
        return torch.where(
            self.fitted > 0, drawn if torch.compiler.is_exporting() else drawn + (y - y.detach()), y
        )

    def fit(self, pictures: Tensor, steps: int, batch: int, generator: torch.Generator) -> None:
        """Train D alone to draw pictures (N, C, H, W) from their readings, then switch it on."""
        optimiser = torch.optim.Adam(self.draw.parameters(), 3e-3)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
            x = pictures[
                torch.randint(len(pictures), (batch,), generator=generator, device=pictures.device)
            ]
            error = self.decode(self.read(x).round()) - x
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(error.square().mean() + 0.2 * error.abs().mean())
            optimiser.step()
        self.fitted.fill_(1.0)
