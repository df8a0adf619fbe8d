"""A network that reads the labels of pictures: features for the perceptual losses.

Features of a network that tells small parts apart, such as mouths of five pixels, count those parts
more than the encoder of f, which has learned to restore pixels (perceptual losses: Johnson et al.,
2016, arXiv 1603.08155). It trains at the start of a run, on the training pictures, and is not
exported. `model_export.evaluation` measures with a classifier of another architecture and seed,
which training never sees.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.data.datasets import Dataset
from model_export.data.drawings import Draw
from model_export.evaluation.classifier import (
    heads_of,
    inputs_and_targets,
    shifted,
    targets,
    train_heads,
)

_WIDTHS: Final = (32, 64, 128, 128)
_LEAST: Final = 6  # pixels: the least side of the last feature map
_HIDDEN: Final = 192
_BATCH: Final = 96
_LR: Final = 3e-3
_NOISE: Final = 0.15  # the largest σ, of every second batch
_DETAIL: Final = 4.0  # weight of what is finer than three pixels, whose differences are small


class PerceptualNetwork(nn.Module):
    """Pictures (B, C, H, W) in [−1, 1] → logits (B, sum of ``heads``); a head is the values of one
    label.
    """

    def __init__(self, channels: int, size: int, heads: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = heads
        side = size // 2
        blocks: list[nn.Module] = []
        for width in _WIDTHS:
            kernel, stride = (3, 1) if blocks else (4, 2)
            convolution = nn.Conv2d(channels, width, kernel, stride, 1)
            blocks.append(nn.Sequential(convolution, nn.GroupNorm(8, width), nn.SiLU()))
            channels = width
            if side // 2 < _LEAST:
                break
            side //= 2
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side**2, _HIDDEN),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(_HIDDEN, sum(heads)),
        )

    def features(self, x: Tensor, *, pixels: bool = False) -> list[Tensor]:
        """Activations (B, c, h, w) at every scale, from half the side on, of x (B, C, H, W).

        With ``pixels``, x and its fine detail come first: (B, 2C, H, W).
        """
        features = []
        if pixels:
            smooth = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            features.append(torch.cat([x, _DETAIL * (x - smooth)], 1))
        for depth, block in enumerate(self.blocks):
            x = block(functional.avg_pool2d(x, 2) if depth else x)
            features.append(x)
        return features

    def hidden(self, last: Tensor) -> Tensor:
        """The vector (B, 192) that the heads read, of the last feature map."""
        return self.head[:3](last)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of all heads side by side."""
        return self.head[3:](self.hidden(self.features(x)[-1]))


def new_network(data: Dataset) -> PerceptualNetwork:
    """The network for classes or attributes of the data, or without either for rotations; not
    trained, and frozen.

    A further head tells pictures from drawings that are none.
    """
    _, channels, size, _ = data.train.shape
    return PerceptualNetwork(channels, size, (*heads_of(data), 2)).requires_grad_(False).eval()


def fit(
    network: PerceptualNetwork,
    data: Dataset,
    seed: int,
    device: torch.device,
    draw: Draw,
    *,
    steps: int,
) -> None:
    """Train the network on the training pictures; the seed decides the result on one machine.

    ``draw`` makes the drawings of its last head, a third as many as pictures.
    """
    _, labels, _ = targets(data)
    generator = torch.Generator(device).manual_seed(seed)
    network.requires_grad_(True).train()

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for step in range(steps):
            index = torch.randint(
                len(data.train), (_BATCH,), generator=generator, device=device
            ).cpu()
            x, target = inputs_and_targets(
                data.train[index].to(device), None if labels is None else labels[index]
            )
            x = torch.cat([x, draw(x[::3], generator)])
            # A drawing has no label, so each head reads the rows that come with its own.
            columns = [*target.T, (torch.arange(len(x)) >= _BATCH).long()]
            yield _varied(x, noisy=step % 2 == 1, generator=generator), columns

    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the dropout
        train_heads(
            network, network.heads, batches(), steps=steps, lr=_LR, name="perceptual network"
        )
    network.requires_grad_(False).eval()


def _varied(x: Tensor, *, noisy: bool, generator: torch.Generator) -> Tensor:
    """Move the whole batch by up to a twentieth of its side, and add noise of random strength to
    each row.
    """
    moved = shifted(x, x.shape[-1] // 20, generator)
    if not noisy:
        return moved
    sigma = _NOISE * torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
    return moved + sigma * torch.randn(x.shape, generator=generator, device=x.device)
