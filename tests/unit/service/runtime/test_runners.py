"""Runners, and rows that stay in device memory between steps. Sessions and models are fakes."""

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.domain.errors import ModelFailure
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams
from service.runtime.runners import PaddedRunner
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import sample_rows
from tests.helpers.serving import Clock, marked, params, play, submitted

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
    top, others = Session(), list[Session]()

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


class DeviceModel(FakeModel):
    """A fake with a device batch. ``calls`` has the calls in order; a number is the rows of a `run`."""

    def __init__(self, *args: object, breaks_at: int = 0, loses: bool = False, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.calls: list[str | int] = []
        self.breaks_at, self.loses = breaks_at, loses
        self.there = np.empty((0, *self.shape), np.float32)

    @property
    def device_batch(self) -> "DeviceModel":
        return self

    def run(self, rows: FloatRows) -> FloatRows:
        self.calls.append(len(rows))
        return super().run(rows)

    def upload(self, rows: FloatRows) -> None:
        self.calls.append("upload")
        self.there = rows.copy()

    def run_steps(self, keep_going: Callable[[], bool] | None = None) -> None:
        self.step()
        while keep_going is not None and keep_going():
            self.step()

    def step(self) -> None:
        self.calls.append("step")
        self.breaks_at -= 1
        if self.breaks_at == 0:
            raise RuntimeError("for once")
        self.there = super().run(self.there)

    def download(self, out: FloatRows) -> None:
        self.calls.append("download")
        if self.loses:
            raise RuntimeError("gone")
        out[...] = self.there[: len(out)]


def answered(model: FakeModel, rows: FloatRows, wanted: SchedulingParams) -> Result:
    return play(lambda scheduler: scheduler.run(rows, wanted), model)


@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
@pytest.mark.parametrize(
    "wanted",
    [params(1), params(2), params(9, score=True), params(9, record=(0, 4, 9)), params(9, tolerance=0.6), params(40)],
)
def test_the_answer_is_the_same(wanted: SchedulingParams, buckets: tuple[int, ...] | None) -> None:
    x = marked(16, -8, 1024)
    there, here = answered(DeviceModel(buckets=buckets), x, wanted), answered(FakeModel(buckets=buckets), x, wanted)
    for field in ("rows", "steps", "converged", "distance", "drift"):
        np.testing.assert_array_equal(getattr(there, field), getattr(here, field))
    for a, b in zip(there.trajectory, here.trajectory, strict=True):
        assert [(step.step, step.change) for step in a] == [(step.step, step.change) for step in b]


@pytest.mark.parametrize(
    ("options", "steps", "calls"),
    [
        # the first step for its distance, the last for the answer
        ({}, 6, [1, "upload", "step", "step", "step", "step", "download", 1]),
        ({}, 3, [1, 1, 1]),  # a single unobserved step runs from the host
        # two steps were made and are not made again; from then on the rows come and go
        ({"breaks_at": 3}, 8, [1, "upload", "step", "step", "step", "download", 1, 1, 1, 1, 1]),
        # rows that cannot be downloaded are computed again
        ({"loses": True}, 5, [1, "upload", "step", "step", "step", "download", 1, 1, 1, 1]),
    ],
)
def test_rows_are_downloaded_only_when_observed(options: dict[str, Any], steps: int, calls: list[str | int]) -> None:
    model = DeviceModel(**options)
    result = answered(model, marked(1024), params(steps))
    np.testing.assert_array_equal(result.rows, marked(1024 * 0.5**steps))
    assert model.calls == calls


def nan_below_3(rows: FloatRows) -> FloatRows:
    y = rows * np.float32(0.5)
    return np.where(y < 3, np.float32(math.nan), y)


@pytest.mark.parametrize("options", [{"function": nan_below_3}, {"poison": lambda row: row.flat[0] == 2}])
def test_a_row_that_becomes_nan_or_poison_fails_alone(options: dict[str, Any]) -> None:
    async def main(scheduler: Scheduler) -> list[Result | BaseException]:
        runs = [scheduler.run(marked(value), params(6)) for value in (1024, 64)]  # 16, and below 3 at step 5
        return await asyncio.gather(*runs, return_exceptions=True)

    good, bad = play(main, DeviceModel(**options))
    assert isinstance(good, Result)
    np.testing.assert_array_equal(good.rows, marked(16))
    assert isinstance(bad, ModelFailure)


def test_out_of_memory_on_the_device_reduces_the_batch() -> None:
    model = DeviceModel(buckets=(1, 2, 4))

    def step() -> None:
        model.memory_rows = 2  # somebody else has taken the rest
        model.there = FakeModel.run(model, model.there)

    model.step = step  # type: ignore[method-assign]
    x = marked(64, 128, 256, 512)
    np.testing.assert_array_equal(answered(model, x, params(6)).rows, marked(1, 2, 4, 8))
    assert model.batch_size_reductions == 1
    assert model.buckets == (1, 2)


def test_a_new_request_interrupts_after_the_current_step() -> None:
    model = DeviceModel()
    step = model.step

    async def main(scheduler: Scheduler) -> None:
        loop, short = asyncio.get_running_loop(), list[asyncio.Task[Result]]()

        def join(admitted: threading.Event) -> None:
            short.append(submitted(scheduler, marked(2), params()))
            loop.call_soon(loop.call_soon, admitted.set)  # in the next turn: after it was handed over

        def watched() -> None:
            step()
            if model.calls.count("step") == 3:
                admitted = threading.Event()
                loop.call_soon_threadsafe(join, admitted)
                admitted.wait(300)

        model.step = watched  # type: ignore[method-assign]
        await scheduler.run(marked(1024), params(100))
        await short[0]

    play(main, model, clock=Clock())  # time stands still: nothing else can interrupt
    assert model.calls[:7] == [1, "upload", "step", "step", "step", "download", 1]


def test_a_time_limit_ends_unobserved_steps() -> None:
    model, clock = DeviceModel(), Clock()
    step = model.step

    def slow() -> None:
        step()
        clock.now += 0.06

    model.step = slow  # type: ignore[method-assign]
    play(lambda scheduler: scheduler.run(marked(1024), params(6)), model, clock=clock)
    assert model.calls == [1, *["upload", "step", "step", "download"] * 2, 1]
