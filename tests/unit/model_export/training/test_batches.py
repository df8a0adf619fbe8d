from itertools import permutations

import pytest
import torch
from torch import Tensor

from model_export.data import drawings
from model_export.data.datasets import Dataset
from model_export.training.batches import BalancedPairs, BatchBuilder, CandidatePool, draw_latents
from model_export.training.log import ThroughputMeter
from model_export.training.presets import get_preset
from model_export.training.stages import Stage, Weights


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


def test_latents_are_standard_normal_and_the_generator_decides() -> None:
    z = latents(4000)
    assert (z.shape, z.dtype) == ((4000, 1, 4, 4), torch.float32)
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.std()) - 1.0) < 0.02
    assert torch.equal(latents(3, 5), latents(3, 5))
    assert not torch.equal(latents(3, 5), latents(3, 6))


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


def test_drawings_are_drawn_where_a_stage_asks_for_them(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "_BANK", 20)

    def built(step: int, **weights: float) -> Tensor | None:
        meter = ThroughputMeter(torch.device("cpu"))
        builder = BatchBuilder(get_preset("tiny"), data.train, seed=3, meter=meter)
        stage = Stage(name="s", steps=9, lr=1.0, weights=Weights(**weights), drift_pictures=24)
        batch = builder.build(step, 0, stage, f)
        assert batch.drift_pictures is None or len(batch.drift_pictures) == 24
        return batch.drawings

    first, again, later = built(1, project_any=1.0), built(1, project_any=1.0), built(2, project_any=1.0)
    assert first is not None
    assert again is not None  # a resumed run draws the same
    assert later is not None
    assert first.shape == (16, 1, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert built(1, drifting=1.0) is None
