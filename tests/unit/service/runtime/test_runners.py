"""Runners, and rows that stay in device memory between steps. Sessions and models are fakes."""

from typing import Any

import numpy as np
import pytest

from service.runtime.runners import PaddedRunner
from tests.helpers.onnx_models import sample_rows

SHAPE = (1, 8, 8)


class Binding:
    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.x = value

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.y = value

    def synchronize_inputs(self) -> None: ...

    def synchronize_outputs(self) -> None: ...


class Session:
    """y = x + 1; ``runs`` has the shape of every run."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, ...]] = []
        self.fails = False

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        if self.fails:
            raise RuntimeError("no")
        self.runs.append(tuple(binding.x.shape()))
        binding.y.update_inplace(binding.x.numpy() + np.float32(1))


def downloaded(runner: PaddedRunner, rows: int) -> Any:
    out = np.empty((rows, *SHAPE), np.float32)
    runner.download(out)
    return out


def test_every_bucket_and_size_may_have_a_session_of_its_own() -> None:
    top = Session()
    others = list[Session]()

    def another() -> Session:
        others.append(Session())
        return others[-1]

    runner = PaddedRunner(top, another, (1, 2, 4), "cpu")
    for shape in [(rows, *SHAPE) for rows in (4, 1, 9, 2, 1, 3)] + [(4, 1, 2, 2), (3, 1, 2, 2)]:
        x = sample_rows(shape[0], shape[1:])
        np.testing.assert_array_equal(runner(x), x + np.float32(1))
    sizes = [set(session.runs) for session in (top, *others)]
    assert sizes == [{(4, *SHAPE)}, {(1, *SHAPE)}, {(2, *SHAPE)}, {(4, 1, 2, 2)}]


def test_padding_is_zero_after_a_larger_batch() -> None:
    runner = PaddedRunner(Session(), Session, (4,), "cpu")
    runner.upload(sample_rows(4))
    runner.upload(sample_rows(1))
    assert not downloaded(runner, 4)[1:].any()


def test_a_step_that_fails_leaves_the_rows_as_they_were() -> None:
    session = Session()
    runner = PaddedRunner(session, Session, (2,), "cpu")
    x = sample_rows(2)
    runner.upload(x)
    runner.run_steps()
    session.fails = True
    with pytest.raises(RuntimeError, match="no"):
        runner.run_steps()
    np.testing.assert_array_equal(downloaded(runner, 2), x + np.float32(1))
    session.fails = False
    runner.run_steps()
    np.testing.assert_array_equal(downloaded(runner, 2), x + np.float32(1) + np.float32(1))
