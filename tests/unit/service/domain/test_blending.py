import numpy as np
import pytest

from service.domain.blending import blend, blend_result, close_loop
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Result, StepOutput
from tests.helpers.onnx_models import sample_rows

SHAPE = (1, 4, 4)


def result(rows: FloatRows, *, drift: bool = True, trajectory: bool = True) -> Result:
    n = len(rows)
    return Result(
        rows=rows,
        steps=np.arange(n),
        converged=np.arange(n) % 2 == 0,
        distance=np.arange(n) / 10,
        drift=np.arange(n) / 100 if drift else None,
        trajectory=[[step(i, rows[i], k) for k in (0, 1)] for i in range(n)] if trajectory else [],
        queue_s=0.1,
        compute_s=0.2,
    )


def step(index: int, row: FloatRow, number: int) -> StepOutput:
    return StepOutput(index=index, step=number, row=row, change=None if number == 0 else 0.5)


def test_blending_is_exact_at_its_ends() -> None:
    x, y = sample_rows(2, SHAPE)
    assert blend(x, y, 1.0) is y
    np.testing.assert_array_equal(blend(x, y, 0.0), x)
    half = blend(x, y, 0.5)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, (x + y) / 2, atol=1e-7)


def test_a_result_is_blended_with_its_own_inputs_and_no_recorded_input_is() -> None:
    x, y = sample_rows(3, SHAPE, seed=1), sample_rows(3, SHAPE, seed=2)
    blended = blend_result(x, result(y), 0.25)
    np.testing.assert_allclose(blended.rows, 0.75 * x + 0.25 * y, atol=1e-6)
    np.testing.assert_array_equal(blended.distance, result(y).distance)
    for i, (start, end) in enumerate(blended.trajectory):
        np.testing.assert_array_equal(start.row, y[i])
        np.testing.assert_allclose(end.row, 0.75 * x[i] + 0.25 * y[i], atol=1e-6)
        assert (end.index, end.step, end.change) == (i, 1, 0.5)


@pytest.mark.parametrize("optional", [False, True])
def test_a_loop_ends_with_its_first_row(optional: bool) -> None:
    rows = sample_rows(3, SHAPE)
    closed = close_loop(result(rows, drift=optional, trajectory=optional))
    np.testing.assert_array_equal(closed.rows, rows[[0, 1, 2, 0]])
    assert closed.steps.tolist() == [0, 1, 2, 0]
    assert closed.converged.tolist() == [True, False, True, True]
    assert closed.distance.tolist() == [0.0, 0.1, 0.2, 0.0]
    assert (None if closed.drift is None else closed.drift.tolist()) == ([0.0, 0.01, 0.02, 0.0] if optional else None)
    assert len(closed.trajectory) == (4 if optional else 0)
    assert (closed.queue_s, closed.compute_s) == (0.1, 0.2)
