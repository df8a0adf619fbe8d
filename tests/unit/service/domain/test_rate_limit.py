from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.rate_limit import GCRA, Rate
from service.domain.tasks import StepParams

RATES = st.builds(Rate, st.integers(1, 50), st.sampled_from([1.0, 60.0]))


@pytest.mark.parametrize(("text", "rate"), [("20/s", Rate(20, 1.0)), ("600/m", Rate(600, 60.0))])
def test_a_rate_is_read(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert str(rate) == f"{rate.count} requests in {rate.seconds:g} s"


@pytest.mark.parametrize("text", ["", "20", "0/s", "-1/s", "20/h", "2.5/s", "20 /s", "20/s ", "٢/s", "1e3/s"])
def test_anything_else_is_not_a_rate(text: str) -> None:
    with pytest.raises(ValueError, match="such as 20/s or 600/m"):
        Rate.parse(text)


def test_the_number_of_stored_callers_is_bounded() -> None:
    meter, rate = GCRA(callers=2), Rate(1, 60.0)
    for caller in ("a", "b"):
        assert meter.wait(caller, rate, 0.0) == 0.0
    assert meter.wait("a", rate, 1.0) > 0.0  # refused, and yet not the one who has been quiet longest
    assert meter.wait("c", rate, 2.0) == 0.0
    assert meter.wait("a", rate, 3.0) > 0.0
    assert meter.wait("b", rate, 3.0) == 0.0  # forgotten


@given(RATES, st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_no_window_admits_more_than_burst_plus_rate(rate: Rate, gaps: list[float]) -> None:
    meter, now, granted = GCRA(), 0.0, list[float]()
    for gap in gaps:
        now += gap
        wait = meter.wait("a", rate, now)
        if wait == 0.0:
            granted.append(now)
        else:
            assert 0.0 < wait <= rate.interval + 1e-9
    for first, start in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= rate.count + (granted[last] - start) / rate.interval + 1e-6


@given(RATES, st.integers(1, 100))
def test_after_a_burst_a_caller_that_waits_as_told_is_admitted(rate: Rate, requests: int) -> None:
    meter, now = GCRA(), 0.0
    for _ in range(2):
        assert not any(meter.wait("a", rate, now) for _ in range(int(rate.count)))
        assert meter.wait("a", rate, now) == pytest.approx(rate.interval)
        now += rate.count * rate.interval + 1e-6  # rested
    for _ in range(requests):
        wait = meter.wait("a", rate, now)
        if wait:
            now += wait + 1e-6
            assert meter.wait("a", rate, now) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "tolerance": float("nan")}, "tolerance must be above 0"),
        ({"steps": 3, "record": (1, 1)}, "ascending and unique"),
        ({"steps": 3, "record": (-1,)}, "must lie in 0…steps"),
        ({"steps": 3, "record": (0, 4)}, "must lie in 0…steps"),
    ],
)
def test_invalid_requests_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepParams(**options)
