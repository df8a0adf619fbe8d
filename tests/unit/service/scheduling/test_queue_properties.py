"""Properties of the fair queue's order."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.domain.tasks import SchedulingParams, StepParams
from service.scheduling.queue import MAX_SKIPS, FairQueue
from service.scheduling.request import Row, ScheduledRequest


def request(n: int, *, key: str = "", steps: int = 0, deadline: float | None = None) -> ScheduledRequest:
    params = SchedulingParams(step_params=StepParams(steps=10**6), key=key, deadline=deadline)
    found = ScheduledRequest(np.zeros((n, 1, 1, 1), np.float32), params, streamed=False, arrived=0.0)
    for row in found.rows:
        row.steps = steps
    return found


def push(queue: FairQueue, *requests: ScheduledRequest) -> None:
    for one in requests:
        for row in one.rows:
            queue.push(row)


def run(queue: FairQueue, rows: list[Row]) -> None:
    """One step over rows that stay."""
    for row in rows:
        row.steps += 1
        queue.push(row)


@given(
    places=st.integers(1, 9),
    large=st.integers(0, 200),
    guests=st.lists(st.lists(st.tuples(st.sampled_from("cde"), st.integers(1, 4)), max_size=3), max_size=30),
)
def test_two_callers_with_work_get_the_same_number_of_places(
    places: int, large: int, guests: list[list[tuple[str, int]]]
) -> None:
    queue, served = FairQueue(), {"a": 0, "b": 0}
    push(queue, request(places + 1 + large, key="a", steps=5), request(places + 1, key="b"))
    for coming in guests:
        push(queue, *(request(n, key=key) for key, n in coming))
        taken, _ = queue.take(places, 0.0)
        for row in taken:
            if row.request.params.key in served:
                served[row.request.params.key] += 1
        run(queue, [row for row in taken if row.request.params.key in served])
        assert abs(served["a"] - served["b"]) <= 1


@given(
    places=st.integers(1, 6),
    arrivals=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.sampled_from([None, 5.0, 7.0])), max_size=3),
        min_size=1,
        max_size=40,
    ),
)
def test_fewest_steps_first_unless_a_row_has_waited_too_long(
    places: int, arrivals: list[list[tuple[int, int, float | None]]]
) -> None:
    queue, waiting, since = FairQueue(), set[Row](), dict[Row, int]()
    for now, coming in enumerate(arrivals):
        for n, steps, deadline in coming:
            one = request(n, steps=steps, deadline=deadline)
            push(queue, one)
            waiting |= set(one.rows)
            since |= dict.fromkeys(one.rows, now)
        taken, expired = queue.take(places, 0.0)
        assert not expired
        assert len(taken) == min(places, len(waiting))
        waiting -= set(taken)
        for row in taken:
            if now - since[row] <= MAX_SKIPS:
                mine = (row.steps, row.request.deadline)
                assert all(mine <= (other.steps, other.request.deadline) for other in waiting)


@given(places=st.integers(1, 5), before=st.integers(0, 40), extra=st.integers(0, 3))
def test_a_row_waits_for_its_turn_and_no_longer(places: int, before: int, extra: int) -> None:
    """It misses `MAX_SKIPS` batches at most; then new rows get at most every second place."""
    queue = FairQueue()
    push(queue, request(before, steps=900) if before else request(1, steps=900))
    old = request(1, steps=1000)
    push(queue, old)
    bound = MAX_SKIPS + 1 + math.ceil(2 * (max(before, 1) + 1) / places)
    for _ in range(bound):
        push(queue, request(places + extra))
        taken, _ = queue.take(places, 0.0)
        if old.rows[0] in taken:
            return
    raise AssertionError(f"passed over {bound} times")


@given(
    places=st.integers(1, 6),
    plans=st.lists(
        st.tuples(
            st.integers(1, 4),
            st.sampled_from("ab"),
            st.none() | st.floats(0, 20),
            st.integers(0, 19),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=30,
    ),
)
def test_expired_rows_take_no_place_and_no_other_row_is_lost(
    places: int, plans: list[tuple[int, str, float | None, int, int]]
) -> None:
    queue, left, dropped = FairQueue(), dict[Row, int](), set[ScheduledRequest]()
    for now in range(200):
        for n, key, deadline, arrival, steps_run in plans:
            if arrival == now:
                one = request(n, key=key, deadline=deadline)
                push(queue, one)
                left |= dict.fromkeys(one.rows, steps_run)
        taken, expired = queue.take(places, float(now))
        assert not dropped & set(expired), "told twice"
        dropped |= set(expired)
        assert all(one.deadline <= now for one in expired)
        again = []
        for row in taken:
            assert row.request.deadline > now
            assert row.request not in dropped
            left[row] -= 1
            if left[row]:
                again.append(row)
        run(queue, again)
    assert queue.row_count == 0
    assert all(steps_run == 0 or row.request in dropped for row, steps_run in left.items())
