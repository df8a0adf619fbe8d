"""Rows that stay on the device between steps: the answers are those of rows that come and go, whatever happens."""

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest

from service.domain.errors import ModelFailure
from service.domain.latents import FloatRow, FloatRows
from service.domain.model import once
from service.domain.tasks import Result, SchedulingParams, StepOutput, StepParams
from service.scheduling.batch import RunningBatch
from service.scheduling.request import ScheduledRequest
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import marked, params, serving


class Staying(FakeModel):
    """A fake whose rows can stay; ``calls`` has what was done: numbers are the rows of a `run`."""

    def __init__(self, *args: object, breaks_at: int = 0, loses: bool = False, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.calls: list[str | int] = []
        self.breaks_at, self.loses = breaks_at, loses
        self.there = np.empty((0, *self.shape), np.float32)

    @property
    def resident(self) -> "Staying":
        return self

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        self.calls.append(len(rows))
        return super().run(rows, out)

    def load(self, rows: FloatRows) -> None:
        self.calls.append("load")
        self.there = rows.copy()

    def steps(self, more: Callable[[], bool] = once) -> None:
        self.step()
        while more():
            self.step()

    def step(self) -> None:
        self.calls.append("step")
        self.breaks_at -= 1
        if self.breaks_at == 0:
            raise RuntimeError("for once")
        self.there = super().run(self.there)

    def fetch(self, out: FloatRows) -> None:
        self.calls.append("fetch")
        if self.loses:
            raise RuntimeError("gone")
        out[...] = self.there[: len(out)]


def answered(model: FakeModel, rows: FloatRows, wanted: SchedulingParams) -> Result:
    async def main() -> Result:
        with serving(model) as scheduler:
            return await scheduler.submit(rows, wanted)

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
    there, here = answered(Staying(buckets=buckets), x, wanted), answered(FakeModel(buckets=buckets), x, wanted)
    for field in ("rows", "steps", "converged", "distance", "drift"):
        np.testing.assert_array_equal(getattr(there, field), getattr(here, field))
    for a, b in zip(there.trajectory, here.trajectory, strict=True):
        assert [(step.step, step.change) for step in a] == [(step.step, step.change) for step in b]


def test_rows_come_back_only_when_somebody_looks() -> None:
    model = Staying()
    answered(model, marked(1024), params(6))
    # the first step for its distance, the last for the answer
    assert model.calls == [1, "load", *["step"] * 4, "fetch", 1]


def test_a_single_quiet_step_is_not_worth_it() -> None:
    model = Staying()
    answered(model, marked(1024), params(3))
    assert model.calls == [1, 1, 1]


def test_a_model_may_offer_it_and_not_have_it() -> None:
    class Elsewhere(FakeModel):
        resident = None

    assert answered(Elsewhere(), marked(16), params(4)).rows.max() == 1.0


def test_a_step_that_fails_keeps_those_before_it() -> None:
    model = Staying(breaks_at=3)
    result = answered(model, marked(1024), params(8))
    np.testing.assert_array_equal(result.rows, marked(4))
    # two steps were made and are not made again; from then on the rows come and go
    assert model.calls == [1, "load", "step", "step", "step", "fetch", 1, 1, 1, 1, 1]


def test_what_cannot_be_fetched_is_made_again() -> None:
    model = Staying(loses=True)
    np.testing.assert_array_equal(answered(model, marked(1024), params(5)).rows, marked(32))
    assert model.calls == [1, "load", "step", "step", "step", "fetch", 1, 1, 1, 1]


def nan_below(limit: float) -> Callable[[FloatRows], FloatRows]:
    def function(rows: FloatRows) -> FloatRows:
        y = rows * np.float32(0.5)
        return np.where(y < limit, np.float32(math.nan), y)

    return function


def test_a_row_that_is_no_number_any_more_fails_alone() -> None:
    async def main() -> list[Result | BaseException]:
        with serving(Staying(function=nan_below(3))) as scheduler:
            runs = [scheduler.submit(marked(value), params(6)) for value in (1024, 64)]  # 16, and below 3 at step 5
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
        with serving(Staying(poison=poisonous)) as scheduler:
            runs = [scheduler.submit(marked(value), params(6)) for value in (1024, 32)]
            return await asyncio.gather(*runs, return_exceptions=True)

    good, bad = asyncio.run(main())
    assert isinstance(good, Result)
    np.testing.assert_array_equal(good.rows, marked(16))
    assert isinstance(bad, ModelFailure)


def test_out_of_memory_while_they_stay_sheds_as_elsewhere() -> None:
    model = Staying(buckets=(1, 2, 4))

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
    request = ScheduledRequest(rows, SchedulingParams(step_params=StepParams(steps=steps)), streamed=False, arrived=0.0)
    batch.arrange(request.members)
    batch.advance()
    batch.settle()
    return batch


def test_who_comes_interrupts_after_the_step_that_runs() -> None:
    model = Staying()
    batch = batch_of(model, marked(1024), 100)
    inbox: list[StepOutput] = []
    step = model.step

    def counted() -> None:
        step()
        if model.calls.count("step") == 3:
            inbox.append(None)  # type: ignore[arg-type]

    model.step = counted  # type: ignore[method-assign]
    assert batch.cruise(math.inf, inbox) == 3
    assert batch.cruise(math.inf, inbox) == 0
    assert batch.rows[0].steps == 4


def test_time_ends_a_stretch_after_a_step() -> None:
    model = Staying()
    batch = batch_of(model, marked(1024), 100)
    assert batch.cruise(0.0, []) == 1
    assert model.calls[1:] == ["load", "step", "fetch"]


def test_rows_under_suspicion_are_trusted_again_in_another_batch() -> None:
    model = Staying(loses=True)
    batch = batch_of(model, marked(1024), 100)
    assert batch.cruise(0.0, []) == 0
    model.loses = False
    assert batch.cruise(0.0, []) == 1
    batch.arrange(batch.rows)
    assert batch.cruise(0.0, []) == 1
    assert model.calls == [1, "load", "step", "fetch", 1, "load", "step", "fetch"]
