import contextlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import DeadlineUnreachable, IgnError, QueueFull, WouldMissDeadline
from service.domain.tasks import SchedulingParams, StepParams
from service.scheduling.admission import Admission, CostModel
from service.scheduling.request import Counters, ScheduledRequest


def request(
    n: int = 1,
    *,
    steps: int = 1,
    deadline: float | None = None,
    key: str = "",
    tolerance: float | None = None,
    record: tuple[int, ...] = (),
    score: bool = False,
    progress: bool = False,
    streamed: bool = False,
) -> ScheduledRequest:
    step_params = StepParams(steps=steps, tolerance=tolerance, record=record, score=score)
    params = SchedulingParams(step_params=step_params, deadline=deadline, key=key)
    return ScheduledRequest(np.zeros((n, 1, 1, 1), np.float32), params, streamed=streamed, arrived=0.0)


def with_measured_calls(*, queue_rows: int = 10_000, batch_rows: int = 8) -> Admission:
    """Admission after model calls that took 10 ms + 1 ms a row."""
    admission = Admission(queue_rows, batch_rows)
    for n in (1, 8) * 8:
        admission.on_model_call(n, 0.010 + 0.001 * n, 0.0)
    return admission


def serve(admission: Admission, one: ScheduledRequest, steps: int, seconds: float) -> None:
    """Run all rows of a request to their end."""
    admission.on_rows_moved([], one.rows, 0.0)
    for row in one.rows:
        row.done = True
    admission.on_steps_done(one.rows, steps, one.rows, 0.0, seconds)
    assert admission.close(one) == 0


def test_cost_is_a_line_through_the_latest_calls() -> None:
    cost = CostModel()
    for n in (50, 60) * 40:
        cost.add(n, 9.0, 0.0)
    for n in range(1, 65):
        cost.add(n, 0.5 + 0.25 * n, 1.0)
    assert cost.seconds(10, 1.0) == pytest.approx(3.0)
    assert cost.seconds(100, 1.0) == pytest.approx(25.5)


def test_cost_is_unknown_at_first_and_again_after_a_while() -> None:
    cost = CostModel()
    for _ in range(7):
        cost.add(1, 0.1, 0.0)
    assert cost.seconds(1, 0.0) is None
    cost.add(1, 0.1, 0.0)
    assert cost.seconds(1, 29.0) == pytest.approx(0.1)
    assert cost.seconds(1, 31.0) is None


def test_cost_of_sizes_never_seen_is_the_lower_bound() -> None:
    cost = CostModel()
    for _ in range(10):
        cost.add(4, 0.4, 0.0)
    assert cost.seconds(1, 0.0) == pytest.approx(0.1)
    assert cost.seconds(64, 0.0) == pytest.approx(0.4)


def test_cost_never_falls_with_size_nor_goes_below_zero() -> None:
    falling, steep = CostModel(), CostModel()
    for n in (1, 8) * 5:
        falling.add(n, 1.0 / n, 0.0)
        steep.add(n, float(n * n), 0.0)
    assert falling.seconds(1, 0.0) == pytest.approx(falling.seconds(8, 0.0))
    one = steep.seconds(1, 0.0)
    assert one is not None
    assert one > 0.0


def test_queue_limit_counts_waiting_rows_only() -> None:
    admission = Admission(4, 8)
    running = request(8)
    with pytest.raises(QueueFull):
        admission.admit(running, 0.0)
    running = request(3)
    admission.admit(running, 0.0)
    admission.on_rows_moved([], running.rows, 0.0)
    admission.admit(request(4), 0.0)
    assert admission.waiting == 4
    with pytest.raises(QueueFull) as refused:
        admission.admit(request(1), 0.0)
    assert 1.0 <= refused.value.retry_after <= 60.0
    admission.close(running)
    assert admission.waiting == 4


def test_closing_happens_once_and_clears_the_counters() -> None:
    admission = Admission(100, 8)
    one, other = request(3, steps=5, score=True), request(2, key="b")
    admission.admit(one, 0.0)
    admission.admit(other, 0.0)
    admission.on_rows_moved([], one.rows, 0.0)
    admission.on_steps_done(one.rows, 2, [], 0.0, 1.0)
    assert admission.total == Counters(rows=5, steps=3 * 4 + 2, in_batch=3)
    assert admission.close(one) == 3
    assert admission.close(one) is None
    admission.on_steps_done(one.rows, 1, one.rows, 1.0, 2.0)  # the step it was in ends later
    admission.on_rows_moved(one.rows, [], 2.0)
    assert admission.total == Counters(rows=2, steps=2, in_batch=0)
    assert admission.close(other) == 2
    assert admission.total == Counters()


def test_deadlines_are_not_predicted_from_too_few_calls() -> None:
    Admission(100, 8).admit(request(steps=10**6, deadline=0.001), 0.0)


def test_a_deadline_already_passed_is_refused_without_a_prediction() -> None:
    with pytest.raises(DeadlineUnreachable):
        Admission(100, 8).admit(request(deadline=5.0), 5.0)


@pytest.mark.parametrize(
    ("one", "seconds"),
    [
        (request(1, steps=10), 0.110),
        (request(1, steps=9, score=True), 0.110),
        (request(8, steps=10), 0.180),
        (request(16, steps=10), 0.360),
        (request(1, steps=1000, tolerance=0.1), 0.011),  # may stop after one
        (request(1, steps=1000, streamed=True, record=(3, 1000)), 0.033),
        (request(1, steps=1000, streamed=True), 0.011),
    ],
)
def test_unreachable_even_on_an_idle_service(one: ScheduledRequest, seconds: float) -> None:
    admission = with_measured_calls()
    params = one.params
    for deadline, reachable in ((seconds * 1.01, True), (seconds * 0.99, False)):
        again = ScheduledRequest(
            one.inputs,
            SchedulingParams(step_params=params.step_params, deadline=deadline, progress=params.progress),
            streamed=one.streamed,
            arrived=0.0,
        )
        if reachable:
            admission.admit(again, 0.0)
            admission.close(again)
        else:
            with pytest.raises(DeadlineUnreachable):
                admission.admit(again, 0.0)


def test_what_only_slow_calls_forbid_may_be_tried_again() -> None:
    admission = with_measured_calls()
    for n in (1, 8) * 40:
        admission.on_model_call(n, 0.050 + 0.005 * n, 1.0)  # other work on the machine: five times as slow
    for one in (request(1, steps=10, deadline=1.111), request(8, steps=10, deadline=1.181)):
        with pytest.raises(WouldMissDeadline):
            admission.admit(one, 1.0)
    for one in (request(1, steps=10, deadline=1.109), request(8, steps=10, deadline=1.179)):
        with pytest.raises(DeadlineUnreachable):
            admission.admit(one, 1.0)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_row_takes_as_long_on_several_devices(devices: int) -> None:
    admission = Admission(100, *[8] * devices)
    for _ in range(100):
        admission.on_model_call(1, 0.010, 0.0)
    for deadline in (0.3, 0.55, 0.99):
        with pytest.raises(DeadlineUnreachable):
            admission.admit(request(1, steps=100, deadline=deadline), 0.0)
    admission.admit(request(1, steps=100, deadline=1.01), 0.0)


def test_a_single_fast_call_makes_no_deadline_reachable() -> None:
    admission = Admission(100, 8)
    for i in range(1000):
        admission.on_model_call(1, 0.005 if i == 500 else 0.010, 0.0)
    with pytest.raises(DeadlineUnreachable):
        admission.admit(request(1, steps=100, deadline=0.9), 0.0)


def test_a_single_slow_call_makes_no_deadline_unreachable() -> None:
    admission = Admission(10_000, 64)
    admission.on_model_call(64, 2.0, 0.0)
    for _ in range(100):
        admission.on_model_call(32, 0.05, 0.0)
    admission.admit(request(64 * 100), 0.0)
    with pytest.raises(WouldMissDeadline):
        admission.admit(request(32, deadline=0.5), 0.0)


def test_few_calls_of_every_size_tell_what_is_out_of_reach() -> None:
    admission = Admission(100, 8)
    for n in (1, 2, 3, 8) * 2:
        admission.on_model_call(n, 0.010, 0.0)
    with pytest.raises(DeadlineUnreachable):
        admission.admit(request(1, steps=300_000, deadline=0.001), 0.0)


def test_queue_in_the_way_refuses_with_retry_after() -> None:
    admission = with_measured_calls()
    admission.admit(request(8 * 1000), 0.0)  # 1000 model calls of 18 ms
    with pytest.raises(WouldMissDeadline) as refused:
        admission.admit(request(deadline=10.0), 0.0)
    assert 8.0 <= refused.value.retry_after <= 10.1
    admission.admit(request(deadline=18.1), 0.0)


def test_the_running_model_call_counts_as_work_ahead() -> None:
    admission = with_measured_calls()
    running = request(8)
    admission.admit(running, 0.0)
    admission.on_rows_moved([], running.rows, 0.0)
    with pytest.raises(WouldMissDeadline):
        admission.admit(request(key="b", deadline=0.028), 0.0)
    admission.admit(request(key="b", deadline=0.030), 0.0)
    admission.admit(request(key="c", deadline=0.028 + 0.010), 0.010)


def test_another_callers_queue_is_in_the_way_only_for_its_share() -> None:
    admission = with_measured_calls()
    admission.admit(request(8 * 1000, key="a"), 0.0)
    admission.admit(request(key="b", deadline=0.1), 0.0)


def test_long_requests_are_not_in_the_way_of_short_ones() -> None:
    admission = with_measured_calls()
    admission.admit(request(8, steps=100_000), 0.0)
    admission.admit(request(deadline=0.1), 0.0)
    with pytest.raises(WouldMissDeadline):
        admission.admit(request(steps=50, deadline=0.8), 0.0)  # alone 0.55 s, beside the others 0.95 s


def test_retry_after_follows_the_measured_drain_rate() -> None:
    admission = Admission(1000, 8)
    served = request(8, steps=10)
    admission.admit(served, 0.0)
    serve(admission, served, steps=10, seconds=8.0)  # 10 row-steps a second
    admission.admit(request(1000, steps=2), 0.0)
    waits = []
    for _ in range(50):
        with pytest.raises(QueueFull) as refused:
            admission.admit(request(50), 0.0)
        waits.append(refused.value.retry_after)
    assert all(10.0 <= wait <= 12.5 for wait in waits)
    assert len(set(waits)) > 25


def test_retry_after_is_clamped() -> None:
    admission = Admission(1000, 8)
    served = request(1)
    admission.admit(served, 0.0)
    serve(admission, served, steps=1, seconds=60.0)
    admission.admit(request(1000, steps=1000), 0.0)
    with pytest.raises(QueueFull) as refused:
        admission.admit(request(1000), 0.0)
    assert 48.0 <= refused.value.retry_after <= 60.0
    assert math.isfinite(refused.value.retry_after)


asked = st.builds(
    request,
    st.integers(1, 4),
    steps=st.integers(1, 9),
    deadline=st.none() | st.floats(-0.1, 0.5),
    key=st.sampled_from("ab"),
    tolerance=st.none() | st.just(0.1),
    score=st.booleans(),
)


@given(st.lists(asked, max_size=6), st.lists(asked, min_size=1, max_size=8), st.integers(1, 30))
def test_requests_are_admitted_together_as_one_by_one(
    earlier: list[ScheduledRequest], requests: list[ScheduledRequest], queue_rows: int
) -> None:
    def admitted(together: bool) -> tuple[list[str | None], Counters]:
        admission, codes = with_measured_calls(queue_rows=queue_rows), list[str | None]()
        for one in earlier:
            with contextlib.suppress(IgnError):
                admission.admit(one, 0.0)
        if together:
            refused = admission.admit_many(requests, 0.0)
            return [refused[one].error_code if one in refused else None for one in requests], admission.total
        for one in requests:
            try:
                admission.admit(one, 0.0)
                codes.append(None)
            except IgnError as exc:
                codes.append(exc.error_code)
        return codes, admission.total

    assert admitted(together=True) == admitted(together=False)


@pytest.mark.parametrize(("seconds", "expected"), [(lambda rows: 0.01 * rows, True), (lambda rows: 0.01, False)])
def test_rows_run_apart_where_that_is_much_shorter(seconds: Callable[[int], float], expected: bool) -> None:
    admission = Admission(100, 8)
    assert not admission.is_short_apart(1, 7, 0.0)  # nothing is known yet
    for rows in (1, 8) * 10:
        admission.on_model_call(rows, seconds(rows), 0.0)
    assert admission.is_short_apart(1, 7, 0.0) == expected
    assert not admission.is_short_apart(5, 3, 0.0)
