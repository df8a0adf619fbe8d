"""The terms of the loss, one small function each, citing its equation.

x is a batch of pictures, z of latents, y = f(z); all (B, C, H, W). Every function returns a scalar, the mean over the
batch, unless it says otherwise. Shocher et al., 2024 (arXiv 2311.01462) is "the paper"; Al-Jaff et al., 2025
(arXiv 2511.02614) is NAIGN.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from model_export.training.presets import Distance

Function = Callable[[Tensor], Tensor]


def distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """D(a, b) of every row: mean squared or mean absolute difference over C·H·W. Returns (B,)."""
    difference = (a - b).flatten(1)
    return difference.square().mean(1) if kind == "mse" else difference.abs().mean(1)


def reconstruction(f: Function, x: Tensor, kind: Distance) -> Tensor:
    """L_rec of every row, D(f(x), x) (the paper, eq. 3). Returns (B,)."""
    return distance(f(x), x, kind)


def frozen(network: nn.Module) -> Function:
    """f_copy: ``network`` with its present parameters held constant; gradients flow through to the input only."""
    constants = {name: p.detach() for name, p in network.named_parameters()}
    constants |= {name: b.detach().clone() for name, b in network.named_buffers()}

    def call(x: Tensor) -> Tensor:
        out: Tensor = functional_call(network, constants, (x,))
        return out

    return call


def idempotence(f_copy: Function, y: Tensor, kind: Distance) -> Tensor:
    """L_idem = D(f_copy(y), y), y = f(z) with its gradient (the paper, eq. 5): moves y, not f_copy."""
    return distance(f_copy(y), y, kind).mean()


def tightness(f: Function, y: Tensor, kind: Distance) -> Tensor:
    """L_tight of every row, −D(f(sg y), sg y) (the paper, eq. 7): trains the outer f only. Returns (B,)."""
    fixed = y.detach()
    return -distance(f(fixed), fixed, kind)


def copy_free(f: Function, y: Tensor, idem: float, tight: float, kind: Distance) -> Tensor:
    """L_tight = −D(f(y), y), whose gradient times ``tight`` is that of idempotence and tightness, weighted.

    With d = D(f(y), y) of one pass, idempotence wants +idem·∂d/∂y carried on into f(z), and tightness wants
    −tight·∂d/∂θ of the outer f. Both come out of a single backward pass when what flows back into y is scaled by
    −idem/tight. The paper's frozen copy gives the same for one pass more.

    Args:
        f: the network, live.
        y: f(z) with its gradient, (B, C, H, W).
        idem: weight of idempotence, ≥ 0.
        tight: weight of tightness, > 0.
        kind: of the distance.
    """
    fixed = y.detach()
    scaled = fixed - (idem / tight) * (y - fixed)  # the value of y exactly, and a scaled gradient
    return -distance(f(scaled), scaled, kind).mean()


def smooth_clamp(tight: Tensor, rec: Tensor, ratio: float | None) -> Tensor:
    """a·L_rec·tanh(L_tight/(a·L_rec)) row by row (the paper, eq. 9), L_rec taken as a constant bound.

    Args:
        tight: (B,), ≤ 0.
        rec: (B,), ≥ 0.
        ratio: a; None leaves ``tight`` as it is.
    """
    if ratio is None:
        return tight
    bound = (ratio * rec.detach()).clamp_min(1e-12)
    return bound * torch.tanh(tight / bound)


def imle(f: Function, nearest: Tensor, x: Tensor, kind: Distance) -> Tensor:
    """D(f(z*), x), z* the candidate whose output is nearest to x: implicit maximum likelihood (NAIGN, eq. 6)."""
    return distance(f(nearest), x, kind).mean()


def matched(f: Function, z: Tensor, partner: Tensor, kind: Distance) -> Tensor:
    """D(f(z_i), x_σ(i)) with σ an optimal one-to-one assignment: no latent idle, no picture favoured."""
    return distance(f(z), partner, kind).mean()


def distillation(y: Tensor, teacher: Function, z: Tensor, steps: int, kind: Distance) -> Tensor:
    """D(f(z), sg T^k(z)): one step of f learns k steps of a frozen earlier stage T."""
    target = z
    with torch.no_grad():
        for _ in range(steps):
            target = teacher(target)
    return distance(y, target, kind).mean()


def settled(f: Function, y: Tensor, kind: Distance) -> Tensor:
    """D(f(sg y), sg y): what f has made, it keeps. The opposite of tightness, for stages that have a critic."""
    fixed = y.detach()
    return distance(f(fixed), fixed, kind).mean()


def hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Σ over scales of E max(0, 1 − s(x)) + E max(0, 1 + s(y)): what a critic minimises (Lim & Ye, 2017, 1705.02894).

    Args:
        real: scores of pictures, one (B,) for every scale.
        fake: of samples.
    """
    apart = [functional.relu(1 - s).mean() + functional.relu(1 + t).mean() for s, t in zip(real, fake, strict=True)]
    return torch.stack(apart).sum()


def criticised(scores: Sequence[Tensor]) -> Tensor:
    """−Σ over scales of E s(f(z)): samples are to score as pictures do (Projected GANs, arXiv 2111.01007, eq. 4)."""
    return -torch.stack([score.mean() for score in scores]).sum()


def projection(f: Function, degraded: Tensor, x: Tensor, kind: Distance) -> Tensor:
    """D(f(degraded x), x): a degraded picture is to come back in one step."""
    return distance(f(degraded), x, kind).mean()
