import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import QueueFull, WouldMissDeadline
from service.scheduling.admission import Admission, CostModel
from service.scheduling.report import ModelCall
from service.scheduling.request import Batch, Counters, ScheduledRequest
from tests.helpers.serving import scheduled


def admit(admission: Admission, one: ScheduledRequest, now: float = 0.0) -> str:
    """Admit a request; the code of the error with which it is rejected, or an empty string."""
    return "".join(error.error_code for error in admission.admit([one], now).values())


def retry_after(
    admission: Admission, one: ScheduledRequest, kind: type[QueueFull | WouldMissDeadline]
) -> float:
    (error,) = admission.admit([one], 0.0).values()
    assert isinstance(error, kind)
    return error.retry_after


def began(admission: Admission, one: ScheduledRequest) -> Batch:
    """Admit a request and move its rows into a batch."""
    assert admit(admission, one) == ""
    batch = Batch(slices=[one.begin()], rows=len(one.inputs), steps=1, expires=math.inf, reason="")
    admission.on_batch_began(batch.slices, 0.0)
    return batch


def measure(admission: Admission, rows: int, seconds: float, now: float = 0.0) -> None:
    """Let admission learn from a model call."""
    batch = Batch(slices=[], rows=rows, steps=1, expires=math.inf, reason="", began=now)
    batch.calls.append(ModelCall(rows, rows, seconds, "", now))
    admission.on_batch_ended(batch)


def with_measured_calls(*, queue_rows: int = 10_000, batch_rows: int = 8) -> Admission:
    """Admission after model calls that took 10 ms + 1 ms a row."""
    admission = Admission(queue_rows, batch_rows)
    for n in (1, 8) * 8:
        measure(admission, n, 0.010 + 0.001 * n)
    return admission


def test_cost_is_unknown_at_first_and_again_after_a_while() -> None:
    cost = CostModel()
    for _ in range(7):
        cost.add(1, 0.1, 0.0)
    assert cost.seconds(1, 0.0) is None
    cost.add(1, 0.1, 0.0)
    assert cost.seconds(1, 29.0) == pytest.approx(0.1)
    assert cost.seconds(1, 31.0) is None


def test_cost_never_falls_with_size_nor_goes_below_zero() -> None:
    falling = CostModel()
    steep = CostModel()
    alike = CostModel()
    for n in (1, 8) * 5:
        falling.add(n, 1.0 / n, 0.0)
        steep.add(n, float(n * n), 0.0)
        alike.add(4, 0.4, 0.0)
    assert falling.seconds(1, 0.0) == pytest.approx(falling.seconds(8, 0.0))
    one = steep.seconds(1, 0.0)
    assert one is not None
    assert one > 0.0
    # Of a size that was never seen, the lower bound.
    assert [alike.seconds(n, 0.0) for n in (1, 64)] == pytest.approx([0.1, 0.4])


def test_queue_limit_counts_waiting_rows_only() -> None:
    admission = Admission(4, 8)
    assert admit(admission, scheduled(8)) == "queue_full"
    running = scheduled(3)
    began(admission, running)
    assert admit(admission, scheduled(4)) == ""
    assert admission.total.waiting == 4
    assert 1.0 <= retry_after(admission, scheduled(1), QueueFull) <= 60.0
    admission.close([running])
    assert admission.total.waiting == 4


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"n": 1, "steps": 10}, 0.110),
        ({"n": 1, "steps": 9, "score": True}, 0.110),
        ({"n": 8, "steps": 10}, 0.180),
        ({"n": 16, "steps": 10}, 0.360),
        ({"n": 1, "steps": 1000, "tolerance": 0.1}, 0.011),  # may stop after one
        ({"n": 1, "steps": 1000, "streamed": True}, 0.011),
    ],
)
def test_unreachable_even_on_an_idle_service(options: dict[str, Any], seconds: float) -> None:
    assert admit(with_measured_calls(), scheduled(**options, deadline=seconds * 1.01)) == ""
    assert (
        admit(with_measured_calls(), scheduled(**options, deadline=seconds * 0.99))
        == "deadline_unreachable"
    )


def test_what_only_slow_calls_forbid_may_be_tried_again() -> None:
    admission = with_measured_calls()
    for n in (1, 8) * 40:
        # other work on the machine: five times as slow
        measure(admission, n, 0.050 + 0.005 * n, 1.0)
    for n, deadline, code in (
        (1, 1.111, "would_miss_deadline"),
        (8, 1.181, "would_miss_deadline"),
        (1, 1.109, "deadline_unreachable"),
        (8, 1.179, "deadline_unreachable"),
    ):
        assert admit(admission, scheduled(n, steps=10, deadline=deadline), 1.0) == code


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_row_takes_as_long_on_several_devices_and_many_rows_their_share(devices: int) -> None:
    admission = Admission(1000, *[8] * devices)
    for _ in range(100):
        measure(admission, 8, 0.010)
    # of 100 steps, at least
    for n, seconds in ((1, 0.125), (8 * devices, 1.0), (64, 8.0 / devices)):
        assert (
            admit(admission, scheduled(n, steps=100, deadline=seconds * 0.99))
            == "deadline_unreachable"
        )
        one = scheduled(n, steps=100, deadline=seconds * 1.01)
        assert admit(admission, one) == ""
        admission.close([one])


def test_the_queue_in_the_way_rejects_with_retry_after() -> None:
    admission = with_measured_calls()
    admit(admission, scheduled(8 * 1000))  # 1000 model calls of 18 ms
    assert 8.0 <= retry_after(admission, scheduled(deadline=10.0), WouldMissDeadline) <= 10.1
    assert admit(admission, scheduled(deadline=18.1)) == ""


def test_the_running_model_call_counts_as_work_ahead() -> None:
    admission = with_measured_calls()
    began(admission, scheduled(8))
    assert admit(admission, scheduled(key="b", deadline=0.028)) == "would_miss_deadline"
    assert admit(admission, scheduled(key="b", deadline=0.030)) == ""
    assert admit(admission, scheduled(key="c", deadline=0.028 + 0.010), 0.010) == ""


def test_others_are_in_the_way_only_for_their_share() -> None:
    admission = with_measured_calls()
    admit(admission, scheduled(8 * 1000, key="a"))
    assert admit(admission, scheduled(key="b", deadline=0.1)) == ""
    admission = with_measured_calls()
    admit(admission, scheduled(8, steps=100_000))
    assert admit(admission, scheduled(deadline=0.1)) == ""
    # alone 0.55 s, beside the others 0.95 s
    assert admit(admission, scheduled(steps=50, deadline=0.8)) == "would_miss_deadline"


@pytest.mark.parametrize(
    ("seconds", "steps", "least", "most"),
    # 10 row-steps a second, of which 100 are too many; and a queue of more than a minute.
    [(0.8, 2, 10.0, 12.5), (480.0, 1000, 48.0, 60.0)],
)
def test_retry_after_follows_the_measured_drain_rate(
    seconds: float, steps: int, least: float, most: float
) -> None:
    admission = Admission(1000, 8)
    for _ in range(8):
        measure(admission, 8, seconds)
    admit(admission, scheduled(1000, steps=steps))
    waits = [retry_after(admission, scheduled(50), QueueFull) for _ in range(50)]
    assert all(least <= wait <= most for wait in waits)
    assert len(set(waits)) > 25


asked = st.builds(
    scheduled,
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
    def admitted(together: bool) -> tuple[list[str], Counters]:
        admission = with_measured_calls(queue_rows=queue_rows)
        for one in earlier:
            admit(admission, one)
        if not together:
            return [admit(admission, one) for one in requests], admission.total
        rejected = admission.admit(requests, 0.0)
        return [
            rejected[one].error_code if one in rejected else "" for one in requests
        ], admission.total

    assert admitted(together=True) == admitted(together=False)
