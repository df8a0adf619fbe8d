"""Rows through buckets: which buffers, which graphs, in which order. The session is a stand-in that adds one."""

import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.runtime.cuda_graphs import CAPTURES
from service.runtime.runners import PaddedRunner, SingleThreadRunner
from tests.helpers.onnx_models import sample_rows

SHAPE = (1, 8, 8)


class Binding:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert name == "x"
        self.x = value

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        assert name == "y"
        self.y = value

    def synchronize_inputs(self) -> None:
        self.log.append("in")

    def synchronize_outputs(self) -> None:
        self.log.append("out")


class Session:
    """y = x + 1; ``log`` has what was done: the addresses, sizes and graph of every run."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.fails = False

    def io_binding(self) -> Binding:
        return Binding(self.log)

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        if self.fails:
            raise RuntimeError("no")
        graph = None if options is None else options.get_run_config_entry("gpu_graph_id")
        self.log.append((graph, binding.x.data_ptr(), binding.y.data_ptr(), tuple(binding.x.shape())))
        binding.y.update_inplace(binding.x.numpy() + np.float32(1))

    @property
    def runs(self) -> list[Any]:
        return [entry for entry in self.log if isinstance(entry, tuple)]


def fetched(runner: PaddedRunner, rows: int) -> Any:
    out = np.empty((rows, *SHAPE), np.float32)
    runner.fetch(out)
    return out


def test_steps_go_to_and_fro_between_two_buffers_that_stay() -> None:
    session = Session()
    runner = PaddedRunner(session, SHAPE, (1, 4), "cpu")
    x = sample_rows(3)
    for _ in range(2):
        runner.load(x)
        for _ in range(3):
            runner.steps()
        np.testing.assert_array_equal(fetched(runner, 3), x + np.float32(1) + np.float32(1) + np.float32(1))
    there, back = session.runs[:2]
    assert there[1:3] == back[2:0:-1]
    assert session.runs == [there, back, there, there, back, there]
    assert there[0] is None  # without graphs, nothing is said of them
    assert there[3] == (4, *SHAPE)


def test_every_bucket_may_have_a_session_to_itself() -> None:
    top, others = Session(), list[Session]()

    def another() -> Session:
        others.append(Session())
        return others[-1]

    runner = PaddedRunner(top, SHAPE, (1, 2, 4), "cpu", another=another)
    for rows in (4, 1, 9, 2, 1, 3):
        x = sample_rows(rows)
        y = np.empty_like(x)
        runner(x, y)
        np.testing.assert_array_equal(y, x + np.float32(1))
    sizes = [{run[3][0] for run in session.runs} for session in (top, *others)]
    assert sizes == [{4}, {1}, {2}]


def test_the_device_is_waited_for_where_bytes_pass() -> None:
    session = Session()
    runner = PaddedRunner(session, SHAPE, (1,), "cpu")
    runner.load(sample_rows(1))
    runner.steps()
    runner.steps()
    fetched(runner, 1)
    assert [entry if isinstance(entry, str) else "run" for entry in session.log] == ["in", "run", "run", "out"]


def test_what_pads_is_zero_however_much_was_there_before() -> None:
    runner = PaddedRunner(Session(), SHAPE, (4,), "cpu")
    runner.load(sample_rows(4))
    runner.load(sample_rows(1))
    assert not fetched(runner, 4)[1:].any()


def test_no_graph_is_ever_replayed_with_other_buffers_or_shapes() -> None:
    session = Session()
    runner = PaddedRunner(session, SHAPE, (1, 2, 4), "cpu", graphs=True)
    for rows in (1, 4, 2, 9, 3, 1):
        x = sample_rows(rows)
        out = np.empty_like(x)
        runner(x, out)
        np.testing.assert_array_equal(out, x + np.float32(1))
        if rows <= 4:
            runner.load(x)
            for _ in range(3):
                runner.steps()
    numbers = {graph for graph, *_ in session.runs}
    assert numbers == {"1", "2", "3", "4", "5", "6"}  # three buckets, two directions; 0 and −1 mean other things
    assert len(set(session.runs)) == len(numbers)


class Guarded(Session):
    """Notes with every run whether others may use a device meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.alone: list[bool] = []

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        self.alone.append(CAPTURES.capturing)
        super().run_with_iobinding(binding, options)


def test_only_the_run_that_captures_is_alone() -> None:
    session = Guarded()
    runner = PaddedRunner(session, SHAPE, (1, 4), "cpu", graphs=True)
    for rows in (1, 4, 1):
        runner.load(sample_rows(rows))
        for _ in range(4):
            runner.steps()
    assert session.alone == [True, True, False, False] * 2 + [False] * 4
    session.fails = True
    runner.load(sample_rows(4))
    with pytest.raises(RuntimeError):
        runner.steps()
    assert not CAPTURES.capturing


def test_without_graphs_nobody_is_waited_for() -> None:
    session = Guarded()
    runner = PaddedRunner(session, SHAPE, (1,), "cpu")
    with CAPTURES.alone():  # would wait forever
        runner.load(sample_rows(1))
        runner.steps()
        fetched(runner, 1)


@pytest.mark.parametrize("what", ["load", "steps", "fetch", "close"])
def test_with_graphs_whoever_captures_is_not_disturbed(what: str) -> None:
    runner = PaddedRunner(Session(), SHAPE, (1,), "cpu", graphs=True)
    x = sample_rows(1)
    runner.load(x)
    for _ in range(2):
        runner.steps()
    calls: dict[str, Any] = {
        "load": lambda: runner.load(x),
        "steps": runner.steps,
        "fetch": lambda: fetched(runner, 1),
        "close": SingleThreadRunner(runner).close,
    }
    order: list[str] = []

    def disturb() -> None:
        calls[what]()
        order.append(what)

    other = threading.Thread(target=disturb)
    with CAPTURES.alone():
        other.start()
        other.join(0.05)
        order.append("captured")
    other.join(30)
    assert order == ["captured", what]


def test_a_step_that_fails_leaves_the_rows_as_they_were() -> None:
    session = Session()
    runner = PaddedRunner(session, SHAPE, (2,), "cpu")
    x = sample_rows(2)
    runner.load(x)
    runner.steps()
    session.fails = True
    with pytest.raises(RuntimeError, match="no"):
        runner.steps()
    np.testing.assert_array_equal(fetched(runner, 2), x + np.float32(1))
    session.fails = False
    runner.steps()
    np.testing.assert_array_equal(fetched(runner, 2), x + np.float32(1) + np.float32(1))


def test_rows_that_do_not_fit_are_refused_and_nothing_is_there_then() -> None:
    runner = PaddedRunner(Session(), SHAPE, (2,), "cpu")
    runner.load(sample_rows(1))
    with pytest.raises(ValueError, match="3 rows, and the largest bucket is 2"):
        runner.load(sample_rows(3))
    with pytest.raises(ValueError, match="no rows are loaded"):
        runner.steps()
    with pytest.raises(ValueError, match="does not fit"):
        runner.load(np.zeros((1, 1, 8, 1), np.float32))  # would be broadcast


def test_buffers_are_asked_for_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    make = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def noted(shape: Any, kind: Any, device: str, number: int) -> Any:
        asked.append((shape, kind, device, number))
        return make(shape, kind, "cpu", 0)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", noted)
    runner = PaddedRunner(Session(), SHAPE, (2, 4), "cuda")
    assert not asked  # only what is used
    runner.load(sample_rows(3))
    runner.load(sample_rows(4))
    assert asked == [((4, *SHAPE), np.float32, "cuda", 0)] * 2
