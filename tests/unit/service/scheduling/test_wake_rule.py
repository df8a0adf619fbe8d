"""A further worker on a CPU is woken only where the model, not the event loop, takes more CPU time for a request."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.latents import FloatRows
from service.scheduling.wake_rule import WakeRule, wake_rule
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import idle, marked, params, serving

NEVER = 1000


class Clocks:
    """Both clocks of a rule, set by the test."""

    def __init__(self) -> None:
        self.cpu = self.now = 0.0

    def rule(self, rows: int = 16, shared: int | None = None) -> WakeRule:
        return WakeRule(rows, shared_min_rows=shared, cpu_clock=lambda: self.cpu, clock=lambda: self.now)


def measured(per_request: float, per_row: float, gap: float = 0.001, shared: int | None = None) -> WakeRule:
    clocks = Clocks()
    rule = clocks.rule(shared=shared)
    for _ in range(200):
        clocks.cpu, clocks.now = clocks.cpu + 4 * per_request, clocks.now + gap
        rule.on_arrivals(4)
        rule.on_steps(32, 32 * per_row)
    return rule


def test_single_pictures_of_a_fast_model_stay_with_one_worker() -> None:
    assert measured(per_request=2e-4, per_row=1e-4).min_rows(32, 32) > NEVER


def test_many_rows_a_request_wake_others() -> None:
    assert measured(per_request=2e-4, per_row=1e-4).min_rows(2, 128) == 16


def test_single_pictures_of_a_slow_model_wake_others() -> None:
    assert measured(per_request=2e-4, per_row=5e-3).min_rows(32, 32) == 16


@pytest.mark.parametrize(("per_row", "shared", "rows"), [(3e-4, None, 16), (3e-4, 64, 64), (9e-4, 64, 16)])
def test_a_core_that_the_event_loop_uses_takes_more_rows(per_row: float, shared: int | None, rows: int) -> None:
    assert measured(per_request=2e-4, per_row=per_row, shared=shared).min_rows(32, 32) == rows


def test_nothing_measured_decides_by_rows() -> None:
    assert WakeRule(16).min_rows(32, 32) == 16


def test_an_idle_event_loop_is_not_measured() -> None:
    assert measured(per_request=1.0, per_row=1e-4, gap=5.0).min_rows(1, 16) == 16


@given(st.lists(st.floats(1e-6, 1e-2), min_size=100, max_size=120))
def test_the_rule_follows_the_load(seconds: list[float]) -> None:
    rule = measured(per_request=2e-4, per_row=1e-4)
    for value in [*seconds, *[1e-2] * 200]:
        rule.on_steps(1, value)
    assert rule.min_rows(32, 32) == 16


def test_a_rule_needs_a_cpu_with_several_instances() -> None:
    assert wake_rule("cuda", 4, 8) is None
    assert wake_rule("cpu", 1, 8) is None
    assert wake_rule("cpu", 2, 8) is not None


def test_the_first_worker_runs_what_one_can_run() -> None:
    """Requests one after another all go to the first worker, whichever ran last."""
    models = [FakeModel() for _ in range(3)]

    async def main() -> None:
        with serving(*models) as scheduler:
            for _ in range(20):
                await idle(scheduler, 3)
                await scheduler.run(marked(1), params())

    asyncio.run(main())
    assert [len(model.sizes) for model in models] == [20, 0, 0]


def test_where_http_is_the_limit_one_worker_runs_all() -> None:
    """The event loop seems slow, so the second worker sleeps although many rows wait."""
    seconds = iter(range(1_000_000))
    main_thread = threading.get_ident()
    rule = WakeRule(2, cpu_clock=lambda: float(next(seconds)) if threading.get_ident() == main_thread else 0.0)

    def takes_time(rows: FloatRows) -> FloatRows:
        threading.Event().wait(0.001)
        return rows

    models = [FakeModel(function=takes_time) for _ in range(2)]

    async def main() -> None:
        with serving(*models, max_batch_rows=2, queue_rows=1000, wake_rule=rule) as scheduler:
            await idle(scheduler, 2)
            for _ in range(3):
                await scheduler.run(marked(1), params())
            before = len(models[1].sizes)
            await asyncio.gather(*(scheduler.run(marked(1), params()) for _ in range(50)))
            assert len(models[1].sizes) == before

    asyncio.run(main())
