"""Rows that stay in device memory between steps: the results are the same, whatever fails."""

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest

from service.domain.errors import ModelFailure
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StepParams
from service.scheduling.batch import RunningBatch
from service.scheduling.request import ScheduledRequest
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import marked, params, serving


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

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        self.calls.append(len(rows))
        return super().run(rows, out)

    def upload(self, rows: FloatRows) -> None:
        self.calls.append("upload")
        self.there = rows.copy()

    def run_steps(self, keep_going: Callable[[], bool] = bool) -> None:
        self.step()
        while keep_going():
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
    async def main() -> Result:
        with serving(model) as scheduler:
            return await scheduler.run(rows, wanted)

    return asyncio.run(main())


@pytest.mark.parametrize("buckets", [None, (1, 2, 4, 8)])
@pytest.mark.parametrize(
    "wanted",
    [
        params(1),
        params(2),
        params(9),
        params(9, score=True),
        params(9, record=(0, 4, 9)),
        params(9, tolerance=0.6),
        params(40),
    ],
)
def test_the_answer_is_the_same(wanted: SchedulingParams, buckets: tuple[int, ...] | None) -> None:
    x = marked(16, -8, 1024)
    there, here = answered(DeviceModel(buckets=buckets), x, wanted), answered(FakeModel(buckets=buckets), x, wanted)
    for field in ("rows", "steps", "converged", "distance", "drift"):
        np.testing.assert_array_equal(getattr(there, field), getattr(here, field))
    for a, b in zip(there.trajectory, here.trajectory, strict=True):
        assert [(step.step, step.change) for step in a] == [(step.step, step.change) for step in b]


def test_rows_are_downloaded_only_when_observed() -> None:
    model = DeviceModel()
    answered(model, marked(1024), params(6))
    # the first step for its distance, the last for the answer
    assert model.calls == [1, "upload", *["step"] * 4, "download", 1]


def test_a_single_unobserved_step_runs_from_the_host() -> None:
    model = DeviceModel()
    answered(model, marked(1024), params(3))
    assert model.calls == [1, 1, 1]


def test_device_batch_may_be_none() -> None:
    class Elsewhere(FakeModel):
        device_batch = None

    assert answered(Elsewhere(), marked(16), params(4)).rows.max() == 1.0


def test_a_step_that_fails_keeps_those_before_it() -> None:
    model = DeviceModel(breaks_at=3)
    result = answered(model, marked(1024), params(8))
    np.testing.assert_array_equal(result.rows, marked(4))
    # two steps were made and are not made again; from then on the rows come and go
    assert model.calls == [1, "upload", "step", "step", "step", "download", 1, 1, 1, 1, 1]


def test_rows_that_cannot_be_downloaded_are_computed_again() -> None:
    model = DeviceModel(loses=True)
    np.testing.assert_array_equal(answered(model, marked(1024), params(5)).rows, marked(32))
    assert model.calls == [1, "upload", "step", "step", "step", "download", 1, 1, 1, 1]


def nan_below(limit: float) -> Callable[[FloatRows], FloatRows]:
    def function(rows: FloatRows) -> FloatRows:
        y = rows * np.float32(0.5)
        return np.where(y < limit, np.float32(math.nan), y)

    return function


def test_a_row_that_becomes_nan_fails_alone() -> None:
    async def main() -> list[Result | BaseException]:
        with serving(DeviceModel(function=nan_below(3))) as scheduler:
            runs = [scheduler.run(marked(value), params(6)) for value in (1024, 64)]  # 16, and below 3 at step 5
            return await asyncio.gather(*runs, return_exceptions=True)

    good, bad = asyncio.run(main())
    assert isinstance(good, Result)
    np.testing.assert_array_equal(good.rows, marked(16))
    assert isinstance(bad, ModelFailure)
    assert "not finite" in str(bad)


def test_poison_fails_alone() -> None:
    def poisonous(row: FloatRow) -> bool:
        return bool(row.flat[0] == 2)

    async def main() -> list[Result | BaseException]:
        with serving(DeviceModel(poison=poisonous)) as scheduler:
            runs = [scheduler.run(marked(value), params(6)) for value in (1024, 32)]
            return await asyncio.gather(*runs, return_exceptions=True)

    good, bad = asyncio.run(main())
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


def batch_of(model: FakeModel, rows: FloatRows, steps: int) -> RunningBatch:
    batch = RunningBatch(model, 8, lambda: 0.0, lambda *_: None)
    request = ScheduledRequest(rows, SchedulingParams(step_params=StepParams(steps=steps)), arrived=0.0)
    batch.rebuild([request.begin()])
    batch.step()
    batch.commit()
    return batch


def test_a_new_request_interrupts_after_the_current_step() -> None:
    model = DeviceModel()
    batch = batch_of(model, marked(1024), 100)
    inbox: list[StepOutput] = []
    step = model.step

    def counted() -> None:
        step()
        if model.calls.count("step") == 3:
            inbox.append(None)  # type: ignore[arg-type]

    model.step = counted  # type: ignore[method-assign]
    assert batch.run_unobserved(math.inf, inbox) == 3
    assert batch.run_unobserved(math.inf, inbox) == 0
    assert batch.slices[0].steps == 4


def test_the_time_limit_ends_unobserved_steps() -> None:
    model = DeviceModel()
    batch = batch_of(model, marked(1024), 100)
    assert batch.run_unobserved(0.0, []) == 1
    assert model.calls[1:] == ["upload", "step", "download"]


def test_a_rebuilt_batch_may_run_on_the_device_again() -> None:
    model = DeviceModel(loses=True)
    batch = batch_of(model, marked(1024), 100)
    assert batch.run_unobserved(0.0, []) == 0
    model.loses = False
    assert batch.run_unobserved(0.0, []) == 1
    batch.rebuild(batch.slices)
    assert batch.run_unobserved(0.0, []) == 1
    assert model.calls == [1, "upload", "step", "download", 1, "upload", "step", "download"]
