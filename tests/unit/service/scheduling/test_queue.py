import gc
import time
import weakref
from collections import Counter

import numpy as np
import pytest

from service.domain.tasks import SchedulingParams, StepParams
from service.scheduling.queue import MAX_SKIPS, FairQueue
from service.scheduling.request import Row, ScheduledRequest


def request(n: int = 1, *, key: str = "", steps: int = 1000, deadline: float | None = None) -> ScheduledRequest:
    params = SchedulingParams(step_params=StepParams(steps=steps), key=key, deadline=deadline)
    return ScheduledRequest(np.zeros((n, 1, 1, 1), np.float32), params, streamed=False, arrived=0.0)


def push(queue: FairQueue, *requests: ScheduledRequest) -> None:
    for one in requests:
        for row in one.rows:
            queue.push(row)


def take(queue: FairQueue, places: int, now: float = 0.0) -> list[Row]:
    return queue.take(places, now)[0]


def run(queue: FairQueue, row: Row) -> None:
    """One step over a row that stays."""
    row.steps += 1
    queue.push(row)


def test_places_are_dealt_round_robin_to_keys() -> None:
    queue = FairQueue()
    push(queue, request(100, key="a"), request(3, key="b"), request(3, key="c"))
    assert Counter(row.request.params.key for row in take(queue, 6)) == {"a": 2, "b": 2, "c": 2}
    assert Counter(row.request.params.key for row in take(queue, 6)) == {"a": 4, "b": 1, "c": 1}


def test_more_keys_than_places_take_turns() -> None:
    queue = FairQueue()
    push(queue, *(request(2, key=key) for key in "abcde"))
    assert [row.request.params.key for _ in range(5) for row in take(queue, 2)] == list("abcdeabcde")


def test_fewest_steps_first_then_deadline_then_arrival() -> None:
    queue = FairQueue()
    late, early, first, second = request(deadline=9.0), request(deadline=5.0), request(), request()
    worn = request(deadline=1.0)
    worn.rows[0].steps = 1
    push(queue, worn, late, first, second, early)
    assert [row.request for _ in range(5) for row in take(queue, 1)] == [early, late, first, second, worn]


def test_a_starved_row_goes_first() -> None:
    queue = FairQueue()
    old = request()
    old.rows[0].steps = 500
    push(queue, old)
    for _ in range(MAX_SKIPS):
        push(queue, request())
        assert take(queue, 1)[0].request is not old
    push(queue, request())
    assert take(queue, 1)[0].request is old


def test_skips_are_counted_anew_after_every_place() -> None:
    queue = FairQueue()
    old = request()
    old.rows[0].steps = 500
    push(queue, old)
    served = []
    for turn in range(4 * (MAX_SKIPS + 1)):
        push(queue, request())
        row = take(queue, 1)[0]
        if row.request is old:
            served.append(turn)
            run(queue, row)
    assert served == [64, 129, 194, 259]


def test_behind_a_very_long_queue_new_rows_get_every_second_place() -> None:
    queue = FairQueue()
    long = request(10 * MAX_SKIPS)
    for row in long.rows:
        row.steps = 5
    push(queue, long)
    for _ in range(MAX_SKIPS + 1):
        for row in take(queue, 2):
            run(queue, row)
    fresh = request(2)
    push(queue, fresh)
    assert [row.request is fresh for row in take(queue, 4)].count(True) == 2


def test_expired_rows_take_no_place_and_leave_with_their_request() -> None:
    queue = FairQueue()
    gone, stays = request(3, deadline=1.0), request(2)
    push(queue, gone, stays)
    taken, expired = queue.take(2, now=1.0)
    assert [row.request for row in taken] == [stays, stays]
    assert expired == [gone]
    assert queue.row_count == 0


def test_removed_and_closed_rows_are_never_taken() -> None:
    queue = FairQueue()
    forgotten, closed, stays = request(5, key="a"), request(5, key="b"), request(1, key="b")
    push(queue, forgotten, closed, stays)
    queue.remove(forgotten)
    queue.remove(forgotten)
    assert queue.row_count == 6
    closed.closed = True
    assert [row.request for row in take(queue, 10)] == [stays]
    assert queue.row_count == 0
    push(queue, forgotten)
    assert len(take(queue, 10)) == 5


def test_removed_rows_do_not_pile_up() -> None:
    queue = FairQueue()
    stays = request()
    stays.rows[0].steps = 10**6
    push(queue, stays)
    removed = []
    for _ in range(2000):
        dropped = request(3)
        push(queue, dropped)
        queue.remove(dropped)
        removed.append(weakref.ref(dropped))
    del dropped
    gc.collect()  # a request and its rows refer to each other
    assert sum(ref() is not None for ref in removed) < 150


def seconds_per_row(waiting: int) -> float:
    """Thread time of forming a batch and putting its rows back, per place, with so many rows waiting."""
    queue, places, batches = FairQueue(), 64, 40
    for i in range(waiting // 50):
        push(queue, request(50, key=str(i % 5)))
    for row in take(queue, places):  # the first batch puts the new rows in order
        run(queue, row)
    began = time.thread_time()
    for _ in range(batches):
        for row in take(queue, places):
            run(queue, row)
    return (time.thread_time() - began) / (places * batches)


def test_forming_a_batch_costs_the_same_however_many_rows_wait() -> None:
    small = min(seconds_per_row(1_000) for _ in range(3))
    large = min(seconds_per_row(100_000) for _ in range(2))
    assert large < 10 * small  # a scan or a sort per batch would cost a hundred times as much


def test_every_row_is_taken_once() -> None:
    queue = FairQueue()
    requests = [request(1 + i % 7, key=str(i % 3), deadline=float(100 + i % 5)) for i in range(50)]
    push(queue, *requests)
    taken: list[Row] = []
    while queue.row_count:
        taken += take(queue, 5)
    assert sorted(map(id, taken)) == sorted(id(row) for one in requests for row in one.rows)


@pytest.mark.parametrize("places", [0, 1])
def test_an_empty_queue_gives_nothing(places: int) -> None:
    assert FairQueue().take(places, 0.0) == ([], [])
