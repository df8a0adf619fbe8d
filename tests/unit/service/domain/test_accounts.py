"""How callers share a resource, and how rates limit them, in one process and in several."""

import errno
import heapq
import multiprocessing
import os
import random
import subprocess
import sys
from functools import partial
from multiprocessing.pool import Pool, ThreadPool
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.accounts import Accounts, Capacity, Rate, Rates
from service.domain.errors import StartupError

CAPACITY = Capacity.of(400, 40)
RATES = st.builds(Rate, st.integers(1, 50), st.sampled_from([1.0, 60.0]))


def test_when_another_comes_both_end_at_half() -> None:
    accounts = Accounts(CAPACITY)
    chance = random.Random(1)
    for turn in range(2000):
        for caller in ("a", "b") if turn > 500 else ("a",):
            accounts.take(caller, 1)
        if turn > 500:
            (ended,) = chance.choices(list(accounts.held), list(accounts.held.values()))
            accounts.give_back(ended, 1)
    assert accounts.held == {"a": pytest.approx(200, abs=8), "b": pytest.approx(200, abs=8)}


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40), st.booleans()), max_size=200)
)
def test_nobody_holds_more_than_there_is_and_a_small_caller_is_served(
    operations: list[tuple[str, int, bool]],
) -> None:
    accounts = Accounts(CAPACITY)
    held = dict[str, list[int]]()
    for caller, amount, takes in operations:
        before = sum(held.get(caller, ()))
        if not takes:
            if held.get(caller):
                accounts.give_back(caller, held[caller].pop())
        elif accounts.take(caller, amount):
            held.setdefault(caller, []).append(amount)
            assert before + amount <= CAPACITY.size
        else:  # it would have more than the rest, or more than everybody would have
            rest = CAPACITY.size + CAPACITY.reserve - accounts.total - amount
            assert before + amount > min(CAPACITY.size, rest)
            assert rest < 0 or before
        assert accounts.total == sum(map(sum, held.values())) <= CAPACITY.size + CAPACITY.reserve


class Clock:
    """Seconds that a test sets."""

    now = 1.0

    def __call__(self) -> float:
        return self.now


@given(RATES, st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_no_window_admits_more_than_burst_plus_rate(rate: Rate, gaps: list[float]) -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    granted = list[float]()
    for gap in gaps:
        clock.now += gap
        wait = rates.wait("a", rate)
        if wait == 0.0:
            granted.append(clock.now)
        else:
            assert 0.0 < wait <= rate.interval + 1e-9
    for first, start in enumerate(granted):
        for last in range(first, len(granted)):
            allowed = rate.count + (granted[last] - start) / rate.interval
            assert last - first + 1 <= allowed + 1e-6


@given(RATES, st.integers(1, 100))
def test_after_a_burst_a_caller_that_waits_as_told_is_admitted(rate: Rate, requests: int) -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    for _ in range(2):
        assert not any(rates.wait("a", rate) for _ in range(int(rate.count)))
        assert rates.wait("a", rate) == pytest.approx(rate.interval)
        clock.now += rate.count * rate.interval + 1e-6  # rested
    for _ in range(requests):
        wait = rates.wait("a", rate)
        if wait:
            clock.now += wait + 1e-6
            assert rates.wait("a", rate) == 0.0


def test_a_full_bucket_forgets_the_caller_that_has_been_quiet_longest() -> None:
    clock = Clock()
    rates = Rates(callers=8, clock=clock)
    waits = list[bool]()
    for name in ("0", "1", "2", "3", "4", "5", "6", "7", "0", "another", "1", "0"):
        clock.now += 1.0
        waits.append(rates.wait(name, Rate(1, 60.0)) > 0)
    assert waits == [False] * 8 + [True, False, True, False]


@pytest.mark.parametrize("pause_s", [0.001, 0.01])
def test_errors_of_a_caller_are_250_in_a_second(pause_s: float) -> None:
    """Each client comes back directly after its error."""
    clock = Clock()
    rates = Rates(clock=clock)
    due = [1.0] * 150
    sent = 0
    while due[0] < 11.0:
        clock.now = heapq.heappop(due)
        heapq.heappush(due, clock.now + rates.pause("a") + pause_s)
        sent += 1
        assert rates.pause(f"another {sent}") == 0.0
    assert 2400 <= sent <= 2500 + 3 * len(due)
    assert 0.5 < max(rates.pause("a") for _ in range(1000)) < 1.0
    clock.now += 1.0
    assert rates.pause("a") == 0.0


def granted(path: Path) -> int:
    rates = Rates(path, clock=lambda: 1.0)
    return sum(rates.wait("a", Rate(500, 60.0)) == 0.0 for _ in range(400))


def test_processes_at_the_same_time_admit_exactly_the_rate(tmp_path: Path) -> None:
    pool: Pool
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sum(pool.map(granted, [tmp_path / "quotas"] * 4, chunksize=1)) == 500


def test_threads_at_the_same_time_admit_exactly_the_rate() -> None:
    rates = Rates(clock=lambda: 1.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPool(4) as pool:
        waits = pool.map(partial(rates.wait, rate=Rate(500, 60.0)), [*"abcdefgh"] * 800)
    sys.setswitchinterval(interval)
    assert waits.count(0.0) == 8 * 500


HOLDS_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_stops_while_it_holds_the_lock_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "quotas"
    rates = Rates(path)
    rate = Rate(1, 60.0)
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        assert [rates.wait("a", rate) for _ in range(3)] == [0.0] * 3
        other.communicate()
    assert [rates.wait("b", rate) > 0 for _ in range(2)] == [False, True]


def test_a_full_disk_is_known_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rates(tmp_path / "quotas")
    stat = (tmp_path / "quotas").stat()
    assert stat.st_blocks * 512 >= stat.st_size > 0  # no hole that a write would have to fill
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=full))
    with pytest.raises(StartupError, match=r"TMPDIR: .* No space left on device"):
        Rates(tmp_path / "others")
