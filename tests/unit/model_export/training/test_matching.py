from itertools import permutations

import pytest
import torch
from torch import Tensor

from model_export.data.noise import NoiseSampler
from model_export.training.batches import BalancedPairs, CandidatePool, features
from model_export.training.stages import Matching

NOISE = NoiseSampler((1, 4, 4))


def f(z: Tensor) -> Tensor:
    return torch.tanh(z)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(count: int, seed: int) -> Tensor:
    """What pool and pairs draw from a generator of that seed."""
    return NOISE.sample(count, seeded(seed))


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand((6, 1, 4, 4), generator=seeded(7)) * 2 - 1


@pytest.mark.parametrize("downsample", [1, 2])
def test_the_nearest_candidate_is_the_nearest(pictures: Tensor, downsample: int) -> None:
    pool = CandidatePool(Matching(pool=200, downsample=downsample), NOISE)
    pool.refresh(f, seeded(1))
    z = latents(200, 1)
    outputs = features(f(z), downsample)
    for picture, chosen in zip(pictures, pool.nearest(pictures), strict=True):
        distances = (outputs - features(picture[None], downsample)).square().sum(1)
        assert torch.equal(chosen, z[distances.argmin()])


def test_candidates_that_are_already_near_are_passed_over(pictures: Tensor) -> None:
    z = latents(20, 1)
    near = f(z[3:4]) + 0.001  # candidate 3 lies within ε of it
    pool = CandidatePool(Matching(pool=20, epsilon=0.01), NOISE)
    pool.refresh(f, seeded(1))
    chosen = pool.nearest(torch.cat([near, pictures]))
    assert not (chosen == z[3]).flatten(1).all(1).any()
    plain = CandidatePool(Matching(pool=20), NOISE)
    plain.refresh(f, seeded(1))
    assert torch.equal(plain.nearest(near)[0], z[3])


def test_when_all_are_near_the_nearest_is_taken_all_the_same(pictures: Tensor) -> None:
    pool = CandidatePool(Matching(pool=20, epsilon=100.0), NOISE)
    plain = CandidatePool(Matching(pool=20), NOISE)
    pool.refresh(f, seeded(1))
    plain.refresh(f, seeded(1))
    assert torch.equal(pool.nearest(pictures), plain.nearest(pictures))


def test_a_pool_must_be_filled_first(pictures: Tensor) -> None:
    with pytest.raises(RuntimeError, match="refresh"):
        CandidatePool(Matching(), NOISE).nearest(pictures)


def test_pairs_are_one_to_one_and_cheapest(pictures: Tensor) -> None:
    pairs = BalancedPairs(Matching(), NOISE)
    pairs.refresh(f, pictures, seeded(3))
    z, partners = pairs.batch(0, len(pictures))
    assert torch.equal(z, latents(len(pictures), 3))
    order = [int((pictures == partner).flatten(1).all(1).nonzero()) for partner in partners]
    assert sorted(order) == list(range(len(pictures)))
    cost = torch.cdist(f(z).flatten(1).double(), pictures.flatten(1).double()).square()
    totals = {p: float(cost[range(len(p)), p].sum()) for p in permutations(range(len(pictures)))}
    assert totals[tuple(order)] == pytest.approx(min(totals.values()))


def test_turns_deal_all_pairs_then_begin_again(pictures: Tensor) -> None:
    pairs = BalancedPairs(Matching(), NOISE)
    pairs.refresh(f, pictures, seeded(3))
    everything, _ = pairs.batch(0, 6)
    turns = torch.cat([pairs.batch(turn, 4)[0] for turn in range(3)])
    assert torch.equal(turns, torch.cat([everything, everything]))


def test_no_graph_is_built(pictures: Tensor) -> None:
    weight = torch.ones(1, requires_grad=True)
    pairs = BalancedPairs(Matching(), NOISE)
    pairs.refresh(lambda z: z * weight, pictures, seeded(3))
    assert not any(tensor.requires_grad for tensor in pairs.batch(0, 6))
