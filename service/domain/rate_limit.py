"""Rate limits: requests per second or minute, and the algorithm that enforces them."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

EXPECTED: Final = "requests per second or minute such as 20/s or 600/m"
_SECONDS: Final = {"s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` requests in ``seconds``: so many at once after a pause, and one every ``interval`` in the long run."""

    count: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read `20/s` or `600/m`; anything else raises ValueError with `EXPECTED`."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})/([sm])", text)
        if match is None:
            raise ValueError(EXPECTED)
        return cls(int(match[1]), _SECONDS[match[2]])

    @property
    def interval(self) -> float:
        """Seconds from one request to the next in the long run."""
        return self.seconds / self.count

    def __str__(self) -> str:
        return f"{self.count:g} requests in {self.seconds:g} s"


def next_due(due: float, rate: Rate, now: float) -> tuple[float, float]:
    """What `GCRA` stores after a request at ``now``, and how long that has to wait: 0 if it is within the rate."""
    following = max(due, now) + rate.interval
    ahead = following - now - rate.seconds
    return following, ahead if ahead > 1e-9 else 0.0  # sums of intervals have rounding errors


class GCRA:
    """Limits every caller to a rate, in constant time and memory (generic cell rate algorithm, ITU-T I.371).

    Beyond ``callers``, the one that has been quiet longest is dropped and starts anew. Belongs to one thread.
    """

    def __init__(self, callers: int = 65_536) -> None:
        self._callers = callers
        # The end of the requests admitted so far if they had come one `interval` apart. It may be up to `seconds` in
        # the future, which is `count` requests at once. With 4/s, four requests at 10.0 s move it to 11.0 s, and a
        # fifth has to wait until 10.25 s.
        self._due: OrderedDict[str, float] = OrderedDict()

    def wait(self, caller: str, rate: Rate, now: float) -> float:
        """Count a request at ``now``, in seconds on any monotonic clock, and return 0; or the seconds to wait."""
        due, wait = next_due(self._due.get(caller, now), rate, now)
        if wait:
            self._due.move_to_end(caller)
            return wait
        self._due[caller] = due
        self._due.move_to_end(caller)
        if len(self._due) > self._callers:
            self._due.popitem(last=False)
        return 0.0
