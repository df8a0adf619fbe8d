"""Which rows run next: the order of the fair queue, its properties and its cost."""

import math
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.queue import MAX_SKIPS, FairQueue
from service.scheduling.request import ScheduledRequest, Slice
from tests.helpers.serving import scheduled

RowId = tuple[ScheduledRequest, int]


def request(n: int = 1, *, steps: int = 0, **options: Any) -> ScheduledRequest:
    """A request whose rows have had so many steps."""
    found = scheduled(n, 10**6, **options)
    found.begin().steps = steps
    return found


def push(queue: FairQueue, *requests: ScheduledRequest) -> None:
    for one in requests:
        for piece in one.slices:
            queue.push(piece)


def rows(slices: list[Slice]) -> list[RowId]:
    return [
        (piece.request, i)
        for piece in slices
        for i in range(piece.start, piece.start + piece.count)
    ]


def take(queue: FairQueue, places: int) -> list[ScheduledRequest]:
    """The request of every row taken."""
    return [one for one, _ in rows(queue.take(places))]


def run(queue: FairQueue, slices: list[Slice]) -> None:
    """One step over rows that stay."""
    for piece in slices:
        piece.steps += 1
        queue.push(piece)


def test_behind_a_very_long_queue_new_rows_get_every_second_place() -> None:
    queue = FairQueue()
    fresh = request(2)
    push(queue, request(10 * MAX_SKIPS, steps=5))
    for _ in range(MAX_SKIPS + 1):
        run(queue, queue.take(2))
    push(queue, fresh)
    assert take(queue, 4).count(fresh) == 2


@given(
    places=st.integers(1, 9),
    large=st.integers(0, 200),
    guests=st.lists(
        st.lists(st.tuples(st.sampled_from("cde"), st.integers(1, 4)), max_size=3), max_size=30
    ),
)
def test_two_callers_with_work_get_the_same_number_of_places(
    places: int, large: int, guests: list[list[tuple[str, int]]]
) -> None:
    queue = FairQueue()
    served = Counter[str]()
    push(queue, request(places + 1 + large, key="a", steps=5), request(places + 1, key="b"))
    for coming in guests:
        push(queue, *(request(n, key=key) for key, n in coming))
        taken = queue.take(places)
        served.update(one.params.key for one, _ in rows(taken))
        run(queue, [piece for piece in taken if piece.request.params.key in "ab"])
        assert abs(served["a"] - served["b"]) <= 1


@given(
    places=st.integers(1, 6),
    arrivals=st.lists(
        st.lists(
            st.tuples(st.integers(1, 3), st.integers(0, 5), st.sampled_from([None, 5.0, 7.0])),
            max_size=3,
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_fewest_steps_first_unless_a_row_has_waited_too_long(
    places: int, arrivals: list[list[tuple[int, int, float | None]]]
) -> None:
    queue = FairQueue()
    since = dict[RowId, int]()
    urgency = dict[RowId, tuple[int, float]]()
    for now, coming in enumerate(arrivals):
        for n, steps, deadline in coming:
            one = request(n, steps=steps, deadline=deadline)
            push(queue, one)
            since |= dict.fromkeys(rows(one.slices), now)
            urgency |= dict.fromkeys(rows(one.slices), (steps, one.deadline))
        taken = rows(queue.take(places))
        waiting = len(urgency)
        mine = [urgency.pop(row) for row in taken]
        assert len(taken) == min(places, waiting)
        most_urgent = min(urgency.values(), default=(99, math.inf))
        assert all(
            now - since[row] > MAX_SKIPS or own <= most_urgent
            for row, own in zip(taken, mine, strict=True)
        )


@given(places=st.integers(1, 5), before=st.integers(1, 40), extra=st.integers(0, 3))
def test_a_row_waits_for_its_turn_and_no_longer(places: int, before: int, extra: int) -> None:
    """It misses `MAX_SKIPS` batches at most; then new rows get at most every second place."""
    queue = FairQueue()
    old = request(1, steps=1000)
    push(queue, request(before, steps=900), old)
    bound = MAX_SKIPS + 1 + math.ceil(2 * (before + 1) / places)
    for _ in range(bound):
        push(queue, request(places + extra))
        if old in take(queue, places):
            return
    raise AssertionError(f"passed over {bound} times")
