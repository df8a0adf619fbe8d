from itertools import permutations

import pytest
import torch
from torch import Tensor

from model_export.training.batches import BalancedPairs, CandidatePool, draw_latents


def f(z: Tensor) -> Tensor:
    return torch.tanh(z)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(count: int, seed: int = 1) -> Tensor:
    return draw_latents(count, (1, 4, 4), seeded(seed))


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand((6, 1, 4, 4), generator=seeded(7)) * 2 - 1


@pytest.fixture
def pairs(pictures: Tensor) -> BalancedPairs:
    weight = torch.ones(1, requires_grad=True)
    return BalancedPairs(lambda z: f(z * weight), latents(6), pictures)


def test_the_nearest_candidate_is_the_nearest(pictures: Tensor) -> None:
    z = latents(1100)  # more than one chunk
    pool = CandidatePool(f, z)
    for picture, chosen in zip(pictures, pool.nearest(pictures), strict=True):
        assert torch.equal(chosen, z[(f(z) - picture).square().sum((1, 2, 3)).argmin()])


def test_pairs_are_one_to_one_and_cheapest(pairs: BalancedPairs, pictures: Tensor) -> None:
    z, partners = pairs.batch(0, len(pictures))
    assert torch.equal(z, latents(6))
    order = [int((pictures == partner).flatten(1).all(1).nonzero()) for partner in partners]
    assert sorted(order) == list(range(len(pictures)))
    cost = torch.cdist(f(z).flatten(1).double(), pictures.flatten(1).double()).square()
    totals = {p: float(cost[range(len(p)), p].sum()) for p in permutations(range(len(pictures)))}
    assert totals[tuple(order)] == pytest.approx(min(totals.values()))


def test_turns_deal_all_pairs_without_a_graph_then_begin_again(pairs: BalancedPairs) -> None:
    everything, partners = pairs.batch(0, 6)
    turns = torch.cat([pairs.batch(turn, 4)[0] for turn in range(3)])
    assert torch.equal(turns, torch.cat([everything, everything]))
    assert not everything.requires_grad
    assert not partners.requires_grad
