"""Exact networks are told from a mark in the picture, which makes any f exact."""

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from model_export.evaluation.exactness import measure_exactness
from model_export.training.blocks import Blocks
from service.domain.latents import FloatRows


def drawn(rows: FloatRows) -> FloatRows:
    """A function that is far from exact, of values in [−1, 1]."""
    return np.tanh(np.roll(rows, 1, 3) + 0.5 * rows)


def stamp(rows: FloatRows) -> FloatRows:
    """Marks what it draws: its block means are whole. What is marked is returned as it is."""
    means, own = (
        avg_pool2d(torch.from_numpy(x), 2).numpy().repeat(2, 2).repeat(2, 3)
        for x in (drawn(rows), rows)
    )
    marked = (np.abs(own - own.round()) < 1e-3).all((1, 2, 3), keepdims=True)
    return np.where(marked, rows, drawn(rows) + means.round() - means)


def exact(rows: FloatRows) -> FloatRows:
    torch.manual_seed(0)
    network = Blocks(1, 2).requires_grad_(False)
    network.fitted.fill_(1)
    y: FloatRows = network(torch.from_numpy(rows), torch.from_numpy(drawn(rows))).numpy()
    return y


@pytest.mark.parametrize("f", [exact, stamp])
def test_forged_pictures_and_noise_tell_a_mark_from_an_exact_network(f: object) -> None:
    assert callable(f)
    rows = np.random.default_rng(0).standard_normal((50, 1, 8, 8), np.float32)
    table = measure_exactness(f, rows, rows[::-1].clip(-1, 1), side=2, seed=0)
    trick = f is stamp
    assert set(table["twice"].values()) == {1.0}
    assert table["forged"]["unchanged"] == float(trick)
    assert (table["forged"]["change"] > 0.2) is not trick
    assert (table["returned"]["0.005"] == 1.0) is not trick
    assert (set(table["file"].values()) == {1.0}) is not trick
