from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model_export.training.replay import ReplayBuffer, ReplayConfig

SHAPE = (1, 2, 2)
PICTURE, SAMPLE = 0.1, 0.2  # anchors
NEW_PICTURE, NEW_SAMPLE = 0.7, 0.8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(value: float, count: int = 8) -> Tensor:
    return torch.full((count, *SHAPE), value)


def buffer(**changes: Any) -> ReplayBuffer:
    """Eight states: four from pictures, four from samples."""
    config = {"size": 8, "visits": 4, "max_applications": 4, "noise": 0.0, "max_distance": 0.5, "restart_share": 0.0}
    return ReplayBuffer(ReplayConfig(**{**config, **changes}), flat(PICTURE), flat(SAMPLE))


def advance(replay: ReplayBuffer, f: Callable[[Tensor], Tensor], seed: int = 0) -> Tensor:
    """Visit and advance four states; returns their positions."""
    visit = replay.visit(generator(seed))
    replay.advance(f, visit, flat(NEW_PICTURE, 4), flat(NEW_SAMPLE, 4), generator(seed + 1000))
    return visit.index


def by_half(index: Tensor, picture: float, sample: float) -> Tensor:
    return torch.where((index < 4)[:, None, None, None], flat(picture, 4), flat(sample, 4))


def test_half_of_the_states_start_at_pictures_and_half_at_samples() -> None:
    replay = buffer()
    assert torch.equal(replay.states, torch.cat([flat(PICTURE, 4), flat(SAMPLE, 4)]))
    assert torch.equal(replay.states, replay.anchors)


def test_a_visit_adds_noise_to_states_only() -> None:
    visit = buffer(noise=0.1).visit(generator())
    assert len(set(visit.index.tolist())) == 4
    assert torch.equal(visit.anchors, by_half(visit.index, PICTURE, SAMPLE))
    assert 0.02 < float((visit.states - visit.anchors).std()) < 0.3


def test_only_visited_states_advance_and_anchors_stay() -> None:
    replay = buffer()
    index = advance(replay, lambda x: x + 0.25)
    visited = torch.zeros(8, dtype=torch.bool)
    visited[index] = True
    torch.testing.assert_close(replay.states[visited], replay.anchors[visited] + 0.25)
    assert torch.equal(replay.states[~visited], replay.anchors[~visited])
    assert torch.equal(replay.anchors, torch.cat([flat(PICTURE, 4), flat(SAMPLE, 4)]))
    assert replay.ages.tolist() == visited.long().tolist()


def test_lost_states_are_dropped() -> None:
    """A mean squared difference of 1 is above the limit of 0.5."""
    replay = buffer()
    index = advance(replay, lambda x: x + 1.0)
    expected = by_half(index, NEW_PICTURE, NEW_SAMPLE)
    assert torch.equal(replay.states[index], expected)
    assert torch.equal(replay.anchors[index], expected)
    assert replay.ages[index].tolist() == [0] * 4


def test_a_share_starts_again_at_random() -> None:
    replay = buffer(restart_share=1.0)
    index = advance(replay, lambda x: x)
    assert torch.equal(replay.anchors[index], by_half(index, NEW_PICTURE, NEW_SAMPLE))
    assert replay.ages[index].tolist() == [0] * 4


def test_the_number_of_applications_follows_the_share_of_kept_states() -> None:
    replay = buffer()
    seen = []
    for step in range(400):
        advance(replay, lambda x: x, step)
        seen.append(replay.applications)
    assert seen == sorted(seen)
    assert seen[0] == 1
    assert seen[-1] == 4  # max_applications
    for step in range(400):
        advance(replay, lambda x: x + 1.0, step)
    assert replay.applications == 1


def test_f_is_applied_that_often() -> None:
    replay, calls = buffer(), []
    replay.applications = 3

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    advance(replay, f)
    assert calls == [4, 4, 4]
    assert replay.ages.max() == 3


def test_a_restored_buffer_continues_bit_for_bit() -> None:
    one, other = buffer(restart_share=0.2), buffer(restart_share=0.2)
    for step in range(30):
        advance(one, lambda x: 0.9 * x + 0.05, step)
    other.load_state_dict(one.state_dict())
    for step in range(30, 200):
        for replay in (one, other):
            advance(replay, lambda x: 0.9 * x + 0.05, step)
    saved, continued = one.state_dict(), other.state_dict()
    assert all(torch.equal(saved[name], continued[name]) for name in ("states", "anchors", "ages"))
    assert all(saved[name] == continued[name] for name in ("applications", "kept_share"))
    assert one.applications > 1


def test_a_saved_state_does_not_change_with_the_buffer() -> None:
    replay = buffer()
    saved = replay.state_dict()
    advance(replay, lambda x: x + 0.25)
    assert torch.equal(saved["states"], saved["anchors"])
