"""How rows are divided among workers.

A further worker on a CPU is woken only where the model, not the event loop, takes more CPU time for a request.
"""

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.latents import FloatRows
from service.scheduling.scheduler import Scheduler
from service.scheduling.worker import WakeRule, wake_rule
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import idle, marked, params, play, rows_worth_waking

NEVER = 1000


def measured(per_request: float, per_row: float, gap: float = 0.001, shared: int | None = None) -> WakeRule:
    """A rule that has measured these CPU seconds, with so many seconds between arrivals."""
    cpu = now = 0.0
    rule = WakeRule(16, shared_min_rows=shared, cpu_clock=lambda: cpu, clock=lambda: now)
    for _ in range(200):
        cpu, now = cpu + 4 * per_request, now + gap
        rule.on_arrivals(4)
        rule.on_steps(32, 32 * per_row)
    return rule


@pytest.mark.parametrize(
    ("rule", "requests", "rows", "expected"),
    [
        pytest.param(WakeRule(16), 32, 32, 16, id="nothing measured"),
        pytest.param(measured(2e-4, 1e-4), 32, 32, NEVER, id="single images of a fast model"),
        pytest.param(measured(2e-4, 1e-4), 2, 128, 16, id="many rows a request"),
        pytest.param(measured(2e-4, 5e-3), 32, 32, 16, id="single images of a slow model"),
        pytest.param(measured(2e-4, 3e-4), 32, 32, 16, id="a core for the event loop"),
        pytest.param(measured(2e-4, 3e-4, shared=64), 32, 32, 64, id="a core that it shares"),
        pytest.param(measured(2e-4, 9e-4, shared=64), 32, 32, 16, id="a core that it shares, bound by the model"),
        pytest.param(measured(1.0, 1e-4, gap=5.0), 1, 16, 16, id="an idle event loop is not measured"),
    ],
)
def test_rows_worth_a_further_worker(rule: WakeRule, requests: int, rows: int, expected: int) -> None:
    assert min(rule.min_rows(requests, rows), NEVER) == expected


@given(st.lists(st.floats(1e-6, 1e-2), min_size=100, max_size=120))
def test_the_rule_follows_the_load(seconds: list[float]) -> None:
    rule = measured(2e-4, 1e-4)
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

    async def main(scheduler: Scheduler) -> None:
        for _ in range(20):
            await idle(scheduler, 3)
            await scheduler.run(marked(1), params())

    play(main, *models)
    assert [len(model.sizes) for model in models] == [20, 0, 0]


def test_idle_devices_share_a_request() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        await idle(scheduler, 2)
        await scheduler.run(marked(*range(8)), params())

    play(main, *models)
    assert [size for model in models for size in model.sizes] == [4, 4]  # the second by whoever is faster


def test_few_rows_stay_together() -> None:
    models = [FakeModel() for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        for rows, sizes in ((8, [8]), (16, [16]), (31, [16, 15]), (64, [32, 32])):
            await idle(scheduler, 2)
            before = [len(model.sizes) for model in models]
            await scheduler.run(marked(*range(rows)), params())
            ran = [size for model, n in zip(models, before, strict=True) for size in model.sizes[n:]]
            assert sorted(ran) == sorted(sizes)

    play(main, *models, max_batch_rows=64, queue_rows=200, wake_rule=rows_worth_waking(16))


def test_rows_with_many_steps_are_divided() -> None:
    both, calls = threading.Barrier(2), itertools.count()

    def meet(rows: FloatRows) -> FloatRows:
        if next(calls) < 2:  # the first worker waits until the second has woken
            both.wait(300)
        return rows

    models = [FakeModel(function=meet) for _ in range(2)]

    async def main(scheduler: Scheduler) -> None:
        await idle(scheduler, 2)
        await scheduler.run(marked(1, 2, 3, 4), params(1000))

    play(main, *models, max_batch_rows=64, wake_rule=rows_worth_waking(16))
    assert all(len(model.sizes) > 100 for model in models)
