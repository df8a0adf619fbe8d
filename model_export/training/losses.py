"""The terms of the loss, one function each.

Notation: x is a batch of pictures, z of latents, y = f(z); all (B, C, H, W). sg(·) stops the
gradient. D is the distance. Every function returns a scalar, the mean over the batch, unless its
docstring says (B,).

Papers: IGN is Shocher et al., 2024 (arXiv 2311.01462); NAIGN is Al-Jaff et al., 2025 (arXiv
2511.02614).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from model_export.training.stages import Distance, Weights

Function = Callable[[Tensor], Tensor]

# of absolute differences beside squared ones: it sharpens small errors, which hardly count so
_L1_SHARE: Final = 0.2


def distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """D(a, b) (B,) over C·H·W: mean squared or mean absolute difference, or the first plus a fifth
    of the second.

    `mse_edges` adds to these a fifth of the absolute difference of the image gradients in both
    directions, per pixel (gradient difference loss: Mathieu et al., arXiv 1511.05440). `l1_ink` is
    the mean absolute difference, in which pixels of ``b`` that are dark count twice, and half of
    that of the image gradients.
    """
    error = a - b
    difference = error.flatten(1)
    if kind == "l1":
        return difference.abs().mean(1)
    if kind == "l1_ink":
        return ((1.0 + (b < 0).float()) * error.abs()).mean((1, 2, 3)) + 0.5 * _edges(error)
    squared = difference.square().mean(1)
    if kind == "mse":
        return squared
    absolute = difference.abs().mean(1)
    return squared + _L1_SHARE * (absolute + _edges(error) if kind == "mse_edges" else absolute)


def _edges(error: Tensor) -> Tensor:
    """The absolute differences of the image gradients in both directions, per pixel: (B,)."""
    steps = torch.cat([error.diff(dim=axis).flatten(1) for axis in (2, 3)], 1).abs().sum(1)
    return steps / error[0].numel()


def lost_marks(y: Tensor, x: Tensor) -> Tensor:
    """The share of the darkness of x that y lacks, beyond a quarter; both (B, 1, H, W) in [−1, 1].

    It is the mean over the connected parts of the ink of x that have over three pixels, so a dot of
    a letter counts as much as a letter. Returns a scalar.
    """
    touching = np.zeros((3, 3, 3, 3), bool)
    touching[1, 1] = True  # neighbours in rows and columns
    labels, count = ndimage.label((x < 0).numpy(force=True), touching)
    parts = torch.from_numpy(labels).to(x.device, torch.int64).flatten()
    ink, left, pixels = (
        torch.zeros(count + 1, device=x.device).index_add(0, parts, each.float().flatten())
        for each in (1 - x, 1 - y.clamp(-1.0, 1.0), torch.ones_like(x))
    )
    counted = pixels > 3
    counted[0] = False
    lost = functional.relu(0.75 - left[counted] / ink[counted])
    return lost.sum() / counted.sum().clamp_min(1)


def frozen(network: nn.Module) -> Function:
    """f_copy: the network with its present parameters as constants. Gradients flow to the input
    only.
    """
    constants = {name: p.detach() for name, p in network.named_parameters()}

    def call(x: Tensor) -> Tensor:
        return functional_call(network, constants, (x,))

    return call


def smooth_clamp(tight: Tensor, rec: Tensor, ratio: float | None) -> Tensor:
    """a·L_rec·tanh(L_tight/(a·L_rec)) for every row (IGN, eq. 9), with L_rec as a constant; (B,)
    each.
    """
    if ratio is None:
        return tight
    bound = (ratio * rec.detach()).clamp_min(1e-12)
    return bound * torch.tanh(tight / bound)


def distillation(y: Tensor, teacher: Function, z: Tensor, steps: int, kind: Distance) -> Tensor:
    """D(f(z), sg T^k(z)): one step of f learns k steps of the frozen teacher T, the network of an
    earlier stage.
    """
    target = z
    with torch.no_grad():
        for _ in range(steps):
            target = teacher(target)
    return distance(y, target, kind).mean()


def hinge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Σ over scales of E max(0, 1 − s(x)) + E max(0, 1 + s(y)), with scores (B,) (arXiv
    1705.02894).
    """
    terms = [
        functional.relu(1 - s).mean() + functional.relu(1 + t).mean()
        for s, t in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).sum()


def generator_loss(scores: Sequence[Tensor]) -> Tensor:
    """−Σ over scales of E s(f(z)): samples shall score like pictures (Projected GANs, arXiv
    2111.01007, eq. 4).
    """
    return -torch.stack([score.mean() for score in scores]).sum()


def feature_distance(features: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Mean over scales of ‖φ(f(x')) − φ(x)‖²/‖φ(x)‖², with φ a frozen encoder; x' is x or a
    corrupted copy of x.

    Pixel distances hardly count small parts and average what a corruption has removed; features (B,
    c, h, w) less.
    """
    terms = []
    for ours, theirs in zip(features, target, strict=True):
        error = (ours.float() - theirs.float()).square().flatten(1).sum(1)
        terms.append((error / theirs.float().square().flatten(1).sum(1).clamp_min(1e-12)).mean())
    return torch.stack(terms).mean()


OF_PICTURES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {"marks": lost_marks}
"""Terms of y and x by their weight, for every kind of network; y is what f makes of the pictures x,
or of corrupted copies. They are computed if their weight is above 0.
"""


class Loss:
    """The loss of one step: the sum of terms times their weights."""

    def __init__(self, weights: Weights, kind: Distance) -> None:
        self.terms: dict[str, Tensor] = {}  # by weight, without it and without gradient
        self._weights = weights
        self._kind: Distance = kind
        self._parts: list[Tensor] = []

    @property
    def total(self) -> Tensor:
        """The scalar to minimise. Only its gradient has a meaning if something `pull`s."""
        return torch.stack(self._parts).sum()

    def add(self, name: str, term: Tensor) -> None:
        """Add a scalar times the weight of this name."""
        self.terms[name] = term.detach()
        weight = getattr(self._weights, name)
        if weight > 0:
            self._parts.append(weight * term)

    def compare(self, name: str, y: Tensor, target: Tensor) -> None:
        """Add the mean distance times the weight of this name."""
        self.add(name, distance(y, target, self._kind).mean())

    def add_of_pictures(self, y: Tensor, x: Tensor) -> None:
        """Add the active terms of `OF_PICTURES`."""
        for name, term in OF_PICTURES.items():
            if getattr(self._weights, name) > 0:
                self.add(name, term(y, x))

    def pull(self, at: Tensor, gradient: Tensor) -> None:
        """Add a gradient at a tensor, weight included."""
        self._parts.append((gradient * at).sum())
