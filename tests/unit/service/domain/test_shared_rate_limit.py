"""One rate limit over several processes."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
