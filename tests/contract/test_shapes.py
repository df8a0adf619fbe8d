"""What images of any shape cost: time of the event loop, and memory beside what the service counts.

After each test `tests.helpers.watchdog` fails if a callback of the event loop took more than 10 ms
of CPU time.
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from service.domain.accounts import Accounts
from tests.contract.any_size import CASES, INFER, LONGEST, TILE, WAYS, ask, write_tiles
from tests.contract.harness import Service, serving, settings
from tests.helpers import watchdog

SLACK_MIB = 100
FORESEEN = {200, 413, 422, 429, 504}
# every so many of the cases, beginning with another one for each way
EACH = 8
EACH_LONG = 12
SHORT = {"X_Request_Timeout": "0.3"}


class Counted(Accounts):
    """Remembers the most that was held since it was forgotten."""

    most = 0

    def take(self, caller: str, amount: int) -> bool:
        is_taken = super().take(caller, amount)
        self.most = max(self.most, self.total)
        return is_taken


class Meter:
    """Sends requests, and compares the memory that each takes with what the service counts for
    it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._held = service.services.in_flight.bytes = Counted(
            service.services.in_flight.bytes.capacity
        )
        for make in WAYS.values():  # what is loaded with the first request stays
            ask(service, make((TILE, TILE), 1))
        trim()
        self._idle_mib = mib("RssAnon")

    def begin(self) -> None:
        """Forget what the request before took, once that is gone: a job that has begun ends after
        the response to a deadline.
        """
        self._until_idle()
        trim()
        self._held.most = 0
        forget_peak()
        self._begun_mib = mib("VmRSS")

    def beyond_mib(self) -> float:
        """The most memory since `begin`, beyond that of then and what was counted.

        Not beyond that of an idle service: the kernel may have dropped pages of libraries then, and
        have read them again since.
        """
        return mib("VmHWM") - self._begun_mib - self._held.most / 2**20

    def left_mib(self) -> float:
        """What is left when no request is in flight."""
        self._until_idle()
        assert self._held.total == 0
        return mib("RssAnon") - self._idle_mib

    def _until_idle(self) -> None:
        self._service.until_idle()
        codec = self._service.services.codec
        self._service.until(lambda: codec.waiting + codec.running == 0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = write_tiles(tmp_path_factory.mktemp("models"))
    with serving(
        settings(models, default_model="tiles", stream_timeout_s=1.0), loop="asyncio"
    ) as service:
        yield service


@pytest.fixture(scope="module")
def meter(service: Service) -> Meter:
    return Meter(service)


@pytest.fixture(autouse=True)
def strict_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LIMIT_S", 0.01)


def ask_quickly(
    service: Service, data: bytes, begin: Callable[[], object] = bool, **headers: str
) -> int:
    """Ask again if a callback took too long: what the service does is slow each time, unlike what
    others do. ``begin`` is called before each time.
    """
    for _ in range(3):
        watchdog.slow.clear()
        begin()
        status = ask(service, data, **headers)
        service.get("/healthz")  # the callback that answered has ended, and been timed
        if not watchdog.slow:
            break
    return status


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_what_is_counted_and_comes_back(way: str, service: Service, meter: Meter) -> None:
    """Every way has some of the cases, and every case is that of several ways."""
    number = list(WAYS).index(way)
    make = WAYS[way]
    short, long = (
        [case for case in CASES if (LONGEST in case[0]) == is_long] for is_long in (False, True)
    )
    cases = short[number % EACH :: EACH] + long[number % EACH_LONG :: EACH_LONG]
    foreseen = FORESEEN | ({400} if INFER in way else set())
    for size, count in cases:
        data = make(size, count)
        headers = SHORT if LONGEST in size else {}
        assert ask_quickly(service, data, meter.begin, **headers) in foreseen, (size, count)
        assert meter.beyond_mib() < SLACK_MIB, (size, count)
    assert meter.left_mib() < SLACK_MIB


# Memory of this process

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def mib(field: Literal["VmRSS", "RssAnon", "VmHWM"]) -> float:
    """Resident memory now, that of it which no file holds, or the most since `forget_peak`."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """The most resident memory is that of now."""
    _CLEAR.write_text("5", encoding="ascii")


def trim() -> None:
    """Give what malloc keeps for later back to the system, so that memory which is used again
    counts again.
    """
    ctypes.CDLL(None).malloc_trim(0)
