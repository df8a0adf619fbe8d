"""The measured change of a row has the same bits in every batch."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.latents import FloatRows
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import params, serving


def f(rows: FloatRows) -> FloatRows:
    changed: FloatRows = np.tanh(rows * np.float32(1.1)).astype(np.float32)
    return changed


def distances(rows: FloatRows, steps: int) -> list[tuple[float, float]]:
    """Distance and drift of rows that run in one batch."""

    async def main() -> list[tuple[float, float]]:
        with serving(FakeModel(rows.shape[1:], f), max_batch_rows=32) as scheduler:
            found = await scheduler.run(rows, params(steps, score=True))
            assert found.drift is not None
            return list(zip(found.distance.tolist(), found.drift.tolist(), strict=True))

    return asyncio.run(main())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 5, 7)])
@given(n=st.integers(2, 24), steps=st.integers(1, 3), seed=st.integers(0, 1000))
def test_a_change_does_not_depend_on_the_batch(shape: tuple[int, int, int], n: int, steps: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((n, *shape), np.float32)
    together = distances(rows, steps)
    assert together[:2] == [distances(rows[i : i + 1], steps)[0] for i in range(2)]
    expected = float(np.abs(f(rows[:1]).astype(np.float64) - rows[:1]).mean())
    assert together[0][0] == pytest.approx(expected, rel=1e-12)
