import asyncio
import contextlib
import heapq
import json
import logging
import sys
from types import SimpleNamespace

import pytest

from service.api import limits
from service.api.limits import ErrorPace, InFlightRequests
from service.domain.errors import OverShare, TooLarge, TooManyBytes
from service.domain.shares import Capacity
from service.observability.logs import JsonFormatter

UNLIMITED = Capacity(sys.maxsize, 0)


def test_a_request_that_needs_more_than_there_is_is_too_large() -> None:
    in_flight = InFlightRequests(UNLIMITED, Capacity.of(100))
    large, other = (SimpleNamespace(caller=caller, held_bytes=0) for caller in "ab")
    epoch = in_flight.enter("a")
    in_flight.hold(large, 95)
    with pytest.raises(TooLarge):  # at once, not after the other requests
        in_flight.hold(large, 6)
    with pytest.raises((TooManyBytes, OverShare)):
        in_flight.hold(other, 90)
    in_flight.leave(epoch, large.caller, large.held_bytes)
    in_flight.hold(other, 90)


def test_json_log_keeps_tracebacks_on_one_line() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "failed: %s", ("it",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "failed: it"
    assert "two\nlines" in json.loads(text)["exception"]
    assert "request_id" not in json.loads(text)


def test_wait_for_current_waits_for_earlier_requests_only() -> None:
    async def main() -> None:
        in_flight = InFlightRequests(UNLIMITED, UNLIMITED)
        await asyncio.wait_for(in_flight.wait_for_current(), 5)
        first = in_flight.enter("a")
        one = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        second = in_flight.enter("a")
        two = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        third = in_flight.enter("a")
        in_flight.leave(second, "a", 0)
        await asyncio.sleep(0)
        assert not one.done()
        assert not two.done()  # the first was there before it, too
        in_flight.leave(first, "a", 0)
        await asyncio.wait_for(asyncio.gather(one, two), 5)
        assert in_flight.count == 1
        in_flight.leave(third, "a", 0)
        await asyncio.wait_for(in_flight.idle(), 5)

    asyncio.run(main())


class Errors:
    """Errors at times of a fake clock; how long each waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waited, self.pace = 0.0, 0.0, ErrorPace()
        names = {"sleep": self._sleep, "get_running_loop": lambda: SimpleNamespace(time=lambda: self.now)}
        monkeypatch.setattr(limits, "asyncio", SimpleNamespace(**names))

    async def _sleep(self, seconds: float) -> None:
        self.waited = max(0.0, seconds)

    def wait(self, caller: str) -> float:
        with contextlib.suppress(StopIteration):
            self.pace.wait(caller).send(None)
        return self.waited


def test_one_error_beside_any_number_of_callers_with_errors_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Errors(monkeypatch)
    for second in range(20):
        errors.now = float(second)
        for _ in range(500):
            for caller in range(40):
                errors.wait(f"caller {caller}")
        assert errors.wait("another") == 0.0


@pytest.mark.parametrize("pause_s", [0.001, 0.01])
@pytest.mark.parametrize(("callers", "connections"), [(1, 150), (150, 1), (10, 15)])
def test_errors_of_busy_clients_are_250_in_a_second(
    monkeypatch: pytest.MonkeyPatch, callers: int, connections: int, pause_s: float
) -> None:
    """Each client comes back directly after its error."""
    errors, sent = Errors(monkeypatch), 0
    due = [(0.0, f"caller {caller}") for caller in range(callers) for _ in range(connections)]
    while due[0][0] < 10.0:
        errors.now, caller = heapq.heappop(due)
        heapq.heappush(due, (errors.now + errors.wait(caller) + pause_s, caller))
        sent += 1
    assert 2400 <= sent <= 2500 + 3 * len(due)


def test_no_error_waits_for_a_second_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Errors(monkeypatch)
    assert max(errors.wait("a") for _ in range(10_000)) < 1.0
    assert [errors.wait(f"caller {number}") for number in range(10_000)] == [0.0] * 10_000
    assert 0.0 < max(errors.wait(f"caller {number}") for number in range(10_000)) < 1.0
    errors.now += 2.0
    assert errors.wait("a") == errors.wait("caller 1") == 0.0
