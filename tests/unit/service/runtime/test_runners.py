"""Runners and bound buffers: which buffers and graphs run in which order. The session is a fake that adds one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from service.runtime import runners
from service.runtime.runners import GRAPH_LOCK, CudaGraphLock, PaddedRunner
from tests.helpers.onnx_models import sample_rows

SHAPE = (1, 8, 8)


class Binding:
    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert name == "x"
        self.x = value

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        assert name == "y"
        self.y = value

    def synchronize_inputs(self) -> None:
        return

    def synchronize_outputs(self) -> None:
        return


class Session:
    """y = x + 1; ``runs`` has the graph id, the two addresses and the shape of every run."""

    def __init__(self, on_run: Callable[[], None] = lambda: None) -> None:
        self.on_run = on_run
        self.runs: list[Any] = []
        self.fails = False

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        self.on_run()
        if self.fails:
            raise RuntimeError("no")
        graph = None if options is None else options.get_run_config_entry("gpu_graph_id")
        self.runs.append((graph, binding.x.data_ptr(), binding.y.data_ptr(), tuple(binding.x.shape())))
        binding.y.update_inplace(binding.x.numpy() + np.float32(1))


def downloaded(runner: PaddedRunner, rows: int) -> Any:
    out = np.empty((rows, *SHAPE), np.float32)
    runner.download(out)
    return out


def test_every_bucket_may_have_a_session_of_its_own() -> None:
    top, others = Session(), list[Session]()

    def another() -> Session:
        others.append(Session())
        return others[-1]

    runner = PaddedRunner(top, SHAPE, (1, 2, 4), "cpu", make_session=another)
    for rows in (4, 1, 9, 2, 1, 3):
        x = sample_rows(rows)
        y = np.empty_like(x)
        runner(x, y)
        np.testing.assert_array_equal(y, x + np.float32(1))
    sizes = [{run[3][0] for run in session.runs} for session in (top, *others)]
    assert sizes == [{4}, {1}, {2}]


def test_padding_is_zero_after_a_larger_batch() -> None:
    runner = PaddedRunner(Session(), SHAPE, (4,), "cpu")
    runner.upload(sample_rows(4))
    runner.upload(sample_rows(1))
    assert not downloaded(runner, 4)[1:].any()


class RecordingLock(CudaGraphLock):
    """Knows whether a thread has exclusive access."""

    captures = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with super().exclusive():
            self.captures = True
            yield
        self.captures = False


def test_no_graph_is_ever_replayed_with_other_buffers_or_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """… and only a capture, which is the first run of a graph, has exclusive access."""
    lock, exclusive = RecordingLock(), list[bool]()
    monkeypatch.setattr(runners, "GRAPH_LOCK", lock)
    session = Session(on_run=lambda: exclusive.append(lock.captures))
    runner = PaddedRunner(session, SHAPE, (1, 2, 4), "cpu", graphs=True)
    for rows in (1, 4, 2, 9, 3, 1):
        x = sample_rows(rows)
        out = np.empty_like(x)
        runner(x, out)
        np.testing.assert_array_equal(out, x + np.float32(1))
        if rows <= 4:
            runner.upload(x)
            for _ in range(3):
                runner.run_steps()
    graphs = [graph for graph, *_ in session.runs]
    assert set(graphs) == {"1", "2", "3", "4", "5", "6"}  # three buckets, two directions; 0 and −1 mean other things
    assert len(set(session.runs)) == 6
    assert exclusive == [graph not in graphs[:place] for place, graph in enumerate(graphs)]
    session.fails = True
    with pytest.raises(RuntimeError):
        PaddedRunner(session, SHAPE, (1,), "cpu", graphs=True)(sample_rows(1), sample_rows(1))
    with lock.shared():  # would wait forever if the capture that failed had not ended
        pass


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("what", ["upload", "run_steps", "download"])
def test_with_graphs_every_call_waits_for_a_capture(what: str, graphs: bool) -> None:
    runner = PaddedRunner(Session(), SHAPE, (1,), "cpu", graphs=graphs)
    x = sample_rows(1)
    runner.upload(x)
    for _ in range(2):
        runner.run_steps()
    calls: dict[str, Any] = {
        "upload": lambda: runner.upload(x),
        "run_steps": runner.run_steps,
        "download": lambda: downloaded(runner, 1),
    }
    order: list[str] = []

    def call() -> None:
        calls[what]()
        order.append(what)

    other = threading.Thread(target=call)
    with GRAPH_LOCK.exclusive():
        other.start()
        other.join(0.05 if graphs else 30)
        order.append("captured")
    other.join(30)
    assert order == (["captured", what] if graphs else [what, "captured"])


def test_a_step_that_fails_leaves_the_rows_as_they_were() -> None:
    session = Session()
    runner = PaddedRunner(session, SHAPE, (2,), "cpu")
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


def test_a_capture_waits_for_users_and_captures_and_later_users_for_it() -> None:
    lock, order = CudaGraphLock(), list[str]()
    here, go = threading.Event(), threading.Event()

    def use(name: str) -> None:
        with lock.shared():
            here.set()
            assert go.wait(30)
            order.append(name)

    def capture() -> None:
        with lock.exclusive():
            order.append("capture")
            threading.Event().wait(0.01)  # another capture would begin meanwhile
            order.append("captured")

    threads = [threading.Thread(target=use, args=("user",)), *(threading.Thread(target=capture) for _ in range(2))]
    for thread in threads:
        thread.start()
        assert here.wait(30)
    while here.is_set():  # until a user has to wait, which is once the capture waits
        here.clear()
        threads.append(threading.Thread(target=use, args=("late",)))
        threads[-1].start()
        here.wait(0.05)
    go.set()
    for thread in threads:
        thread.join(30)
    assert [event for event in order if event != "late"] == ["user", *["capture", "captured"] * 2]
    assert order[-2:] == ["captured", "late"]
