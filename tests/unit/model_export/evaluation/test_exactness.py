"""Exact networks are told from a mark in the picture, which makes any f exact."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model_export.evaluation.exactness import measure_exactness
from model_export.training.blocks import Blocks
from service.domain.latents import FloatRows

SIDE, UNIT = 2, 1 / 4


def drawn(rows: FloatRows) -> FloatRows:
    """A function that is far from exact, of values in [−1, 1]."""
    return np.tanh(np.roll(rows, 1, 3) + 0.5 * rows)


def stamp(rows: FloatRows) -> FloatRows:
    """Marks what it draws: its block means are whole. What is marked is returned as it is."""
    y = drawn(rows)
    y += np.round(means(y)) - means(y)
    marked = (np.abs(means(rows) - np.round(means(rows))) < 1e-3).all((1, 2, 3), keepdims=True)
    return np.where(marked, rows, y)


def means(rows: FloatRows) -> FloatRows:
    blocks = torch.nn.functional.avg_pool2d(torch.from_numpy(rows), SIDE)
    return torch.nn.functional.interpolate(blocks, scale_factor=float(SIDE)).numpy()


def blocks() -> Callable[[FloatRows], FloatRows]:
    torch.manual_seed(0)
    network = Blocks(1, SIDE).requires_grad_(False)
    network.fitted.fill_(1)
    return lambda rows: network(torch.from_numpy(rows), torch.from_numpy(drawn(rows))).numpy()


def rows(seed: int) -> FloatRows:
    return np.random.default_rng(seed).standard_normal((50, 1, 8, 8), np.float32)


@pytest.mark.parametrize(("f", "trick"), [(blocks(), False), (stamp, True)], ids=["blocks", "stamp"])
def test_forged_pictures_and_noise_tell_a_mark_from_an_exact_network(
    f: Callable[[FloatRows], FloatRows], trick: bool
) -> None:
    table = measure_exactness(f, rows(0), rows(1).clip(-1, 1), side=SIDE, seed=0)
    assert set(table["twice"].values()) == {1.0}
    assert table["forged"]["unchanged"] == float(trick)
    assert (table["forged"]["change"] > 0.2) is not trick
    assert (table["returned"]["0.005"] == 1.0) is not trick
    assert (set(table["file"].values()) == {1.0}) is not trick
