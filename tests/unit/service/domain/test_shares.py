"""How callers share a resource, for random callers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.shares import Capacity, Shares

CAPACITY = Capacity.of(400, 40)


def test_a_lone_caller_may_hold_all_and_no_more() -> None:
    shares = Shares(CAPACITY)
    assert all(shares.take("a", 40) for _ in range(10))
    assert not shares.take("a", 1)
    assert shares.is_over_share("a", 1)
    shares.give_back("a", 1)
    assert shares.take("a", 1)


def test_a_newcomer_has_room_whatever_the_others_hold_and_they_get_no_more() -> None:
    shares = Shares(CAPACITY)
    while shares.take("a", 40):
        pass
    assert shares.take("b", 40)
    assert not shares.take("a", 1)
    shares.give_back("a", 40)
    assert not shares.take("a", 1)  # beyond its half
    assert not shares.is_over_share("c", 40)
    assert shares.take("c", 40)
    assert shares.take("b", 10)


def test_when_another_comes_both_end_at_half() -> None:
    shares, held = Shares(CAPACITY), {"a": 0, "b": 0}
    chance = random.Random(1)
    for turn in range(2000):
        for caller in ("a", "b") if turn > 500 else ("a",):
            held[caller] += shares.take(caller, 1)
        if turn > 500:
            (ended,) = chance.choices(list(held), list(held.values()))
            shares.give_back(ended, 1)
            held[ended] -= 1
    assert held == {"a": pytest.approx(200, abs=8), "b": pytest.approx(200, abs=8)}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40), st.booleans()), max_size=200))
def test_nobody_holds_more_than_there_is_and_a_small_caller_is_served(
    operations: list[tuple[str, int, bool]],
) -> None:
    shares, held = Shares(CAPACITY), dict[str, list[int]]()
    for caller, amount, takes in operations:
        before = sum(held.get(caller, ()))
        if not takes:
            if held.get(caller):
                shares.give_back(caller, held[caller].pop())
        elif shares.take(caller, amount):
            held.setdefault(caller, []).append(amount)
            assert before + amount <= CAPACITY.size
        else:  # it would have more than the rest, or more than everybody would have
            rest = CAPACITY.size + CAPACITY.reserve - shares.total - amount
            assert before + amount > CAPACITY.size or rest < 0 or before + amount > rest
        assert shares.total == sum(map(sum, held.values())) <= CAPACITY.size + CAPACITY.reserve
