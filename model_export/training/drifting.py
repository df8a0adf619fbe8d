"""The drifting loss: samples move along a field that vanishes when they have the distribution of
the pictures.

Deng, Li, Li, Du and He, "Generative Modeling via Drifting", 2026 (arXiv 2602.04770). The field V
attracts samples to pictures and repels samples from each other. It needs no adversary. V is
computed on features of a frozen encoder, for each group of features separately, and has no
gradient.

Notation: N samples, M pictures, features of D numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_TEMPERATURES: Final = (0.02, 0.05, 0.2)  # τ in units of √D (the paper, appendix A)
_MAX_MAP: Final = 1024  # numbers; larger feature maps are averaged over squares
# root mean square; a smaller field is rounding error and is not normalised
_MIN_FIELD: Final = 1e-6
_MIN_VARIANCE: Final = 1e-6  # keeps the gradient of a deviation finite


def field(distances: Tensor, signed: Tensor, pictures: int, temperature: float) -> Tensor:
    """V of every sample (…, N, D): attraction to pictures, repulsion from others (the paper, eqs.
    8–11, algorithm 2).

    ``distances`` (…, N, M + K) are those of samples to M ``pictures`` and K others side by side;
    infinite for a sample to itself. ``signed`` (…, M + K, D) holds the pictures and, with the
    opposite sign, the others. The leading dimensions are groups of features that do not interact.
    """
    #                 M pictures   K others
    #               ┌────────────┬──────────┐   A = √(softmax over rows · softmax over columns)
    #    N samples  │     A⁺     │    A⁻    │       of −distance/τ
    #               └────────────┴──────────┘   W⁺ = A⁺ · row sum of A⁻,  W⁻ = A⁻ · row sum of A⁺
    #
    # V = W⁺·pictures − W⁻·others changes its sign if pictures and others are exchanged, so V = 0 if
    # they are equal: samples rest when they have the distribution of the pictures.
    logits = distances / -temperature
    # √(softmax · softmax) in place, with one exp of the matrix: these passes take most of the time
    # of the loss.
    halved = (logits.logsumexp(-1, keepdim=True) / 2, logits.logsumexp(-2, keepdim=True) / 2)
    affinity = logits.sub_(halved[0]).sub_(halved[1]).exp_()
    positive = affinity[..., :pictures]
    negative = affinity[..., pictures:]
    attraction = negative.sum(-1, keepdim=True)
    repulsion = positive.sum(-1, keepdim=True)
    positive *= attraction
    negative *= repulsion
    return affinity @ signed


@torch.no_grad()
def normalised_field(
    samples: Tensor, pictures: Tensor, temperatures: Sequence[float] = _TEMPERATURES
) -> Tensor:
    """Σ over τ of V, each scaled to mean square 1, so that every temperature has equal influence
    (appendix A).

    Samples (…, N, D), which repel one another, and pictures (…, M, D) are scaled by
    `distance_scale`; τ is in units of √D.
    """
    unit = samples.shape[-1] ** 0.5
    count = pictures.shape[-2]
    distances = torch.cat([torch.cdist(samples, pictures), torch.cdist(samples, samples)], -1)
    distances[..., count:].diagonal(dim1=-2, dim2=-1).fill_(float("inf"))  # no sample repels itself
    signed = torch.cat([pictures, -samples], -2)
    total = torch.zeros_like(samples)
    for temperature in temperatures:
        drift = field(distances, signed, count, temperature * unit)
        size = drift.square().mean((-2, -1), keepdim=True).sqrt()
        total += torch.where(size > _MIN_FIELD, drift / size.clamp_min(_MIN_FIELD), 0.0)
    return total


@torch.no_grad()
def distance_scale(samples: Tensor, pictures: Tensor) -> Tensor:
    """The factor that makes √D the mean distance of samples (…, N, D) to pictures (…, M, D): one τ
    suits all groups.
    """
    mean = torch.cdist(samples, pictures).mean((-2, -1), keepdim=True).clamp_min(1e-12)
    return torch.full_like(mean, samples.shape[-1] ** 0.5) / mean


def drifting_loss(samples: Sequence[Tensor], pictures: Sequence[Tensor]) -> Tensor:
    """Mean over feature groups of ‖φ(y) − sg(φ(y) + V)‖² (the paper, eq. 6 and section 3.4).

    The value depends on the normalisation of V and hardly changes during training; its gradient is
    what trains f. Samples have features (N, D) with gradient for every group, pictures (M, D).
    """
    # Groups of the same D are computed together: there are many small ones.
    sizes: dict[int, list[int]] = {}
    for index, group in enumerate(samples):
        sizes.setdefault(group.shape[1], []).append(index)
    terms = []
    for indices in sizes.values():
        ours, theirs = (torch.stack([groups[i] for i in indices]) for groups in (samples, pictures))
        scale = distance_scale(ours, theirs)
        # The target is where the field carries the features of today. It is a constant, so the
        # gradient of the square is −2V: f moves its samples along V, as in a regression.
        fixed = (ours.detach() * scale).float()
        target = fixed + normalised_field(fixed, (theirs * scale).float())
        terms.append((ours * scale - target).square().mean((1, 2)))
    return torch.cat(terms).mean()


def feature_groups(features: Iterable[Tensor]) -> list[Tensor]:
    """The groups, (B, D) each, on which the drifting loss of feature maps (B, c, h, w) is computed.

    Each map gives itself as a group, averaged over squares until it has at most 1024 numbers, and
    the mean and standard deviation of every channel, over the whole map and over each quarter.
    """
    return [group for feature in features for group in _groups(feature.float())]


def _groups(feature: Tensor) -> list[Tensor]:
    """The groups of one feature map (B, c, h, w): (B, D) each."""
    averaged = feature
    while averaged[0].numel() > _MAX_MAP and averaged.shape[-1] > 1:
        averaged = functional.avg_pool2d(averaged, 2, ceil_mode=True)
    groups = [averaged.flatten(1)]
    height, width = feature.shape[2:]
    if min(height, width) > 1:
        groups.append(moments(feature))
    if min(height, width) > 2:
        # the quarters of an odd side share its middle
        rows, columns = (-(-height // 2), -(-width // 2))
        for band in (feature[:, :, :rows], feature[:, :, -rows:]):
            groups += [moments(band[..., :columns]), moments(band[..., -columns:])]
    return groups


def moments(feature: Tensor) -> Tensor:
    """Mean and standard deviation of every channel: (B, c, h, w) → (B, 2c)."""
    flat = feature.flatten(2)
    mean = flat.mean(2, keepdim=True)
    # `var` over two dimensions is ten times as slow on CPUs.
    deviation = ((flat - mean).square().mean(2) + _MIN_VARIANCE).sqrt()
    return torch.cat([mean[:, :, 0], deviation], 1)
