"""One rate limit over several processes."""

import errno
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.errors import StartupError
from service.domain.rate_limit import GCRA, Rate, SharedGCRA

RATES = st.builds(Rate, st.integers(1, 50), st.sampled_from([1.0, 60.0]))


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[SharedGCRA]:
    made = SharedGCRA(tmp_path / "quotas")
    yield made
    made.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RATES, st.lists(st.tuples(st.floats(0, 5), st.sampled_from("abc"), st.booleans()), max_size=100))
def test_two_processes_decide_as_one(
    tmp_path_factory: pytest.TempPathFactory, rate: Rate, requests: list[tuple[float, str, bool]]
) -> None:
    path = tmp_path_factory.mktemp("quotas") / "quotas"
    both, one, now = (SharedGCRA(path), SharedGCRA(path)), GCRA(), 100.0
    for gap, caller, which in requests:
        now += gap
        assert both[which].wait(caller, rate, now) == one.wait(caller, rate, now)
    for each in both:
        each.close()


def granted(path: Path) -> int:
    meter = SharedGCRA(path)
    return sum(meter.wait("a", Rate(500, 60.0), 1.0) == 0.0 for _ in range(400))


def test_processes_at_the_same_time_admit_exactly_the_rate(tmp_path: Path) -> None:
    pool: Pool
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sum(pool.map(granted, [tmp_path / "quotas"] * 4, chunksize=1)) == 500


def test_a_full_bucket_forgets_the_caller_that_has_been_quiet_longest(tmp_path: Path) -> None:
    meter, rate = SharedGCRA(tmp_path / "quotas", callers=8), Rate(1, 60.0)
    for number in range(8):
        assert meter.wait(f"caller {number}", rate, 1.0 + number) == 0.0
    assert meter.wait("caller 0", rate, 10.0) > 0
    assert meter.wait("another", rate, 11.0) == 0.0
    assert meter.wait("caller 1", rate, 12.0) > 0
    assert meter.wait("caller 0", rate, 12.0) == 0.0
    meter.close()


HOLDS_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_stops_while_it_holds_the_lock_stops_nobody(tmp_path: Path, meter: SharedGCRA) -> None:
    rate, command = Rate(1, 60.0), [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path / "quotas")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        assert [meter.wait("a", rate, 1.0) for _ in range(3)] == [0.0] * 3
        other.communicate()
    assert [meter.wait("b", rate, 1.0) > 0 for _ in range(2)] == [False, True]


def test_a_full_disk_changes_nothing(tmp_path: Path, meter: SharedGCRA, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = (tmp_path / "quotas").stat()
    assert stat.st_blocks * 512 >= stat.st_size > 0  # no hole that a write would have to fill
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "pwrite", Mock(side_effect=full))
    assert [meter.wait("a", Rate(1, 60.0), 1.0) for _ in range(2)] == [0.0, 0.0]
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=full))
    with pytest.raises(StartupError, match=r"TMPDIR: .* No space left on device"):
        SharedGCRA(tmp_path / "others")
