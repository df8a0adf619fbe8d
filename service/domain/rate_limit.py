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
        """Read `20/s` or `600/m`.

        Raises:
            ValueError: ``text`` is anything else; the message says what was expected.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,8})/([sm])", text)
        if match is None:
            raise ValueError(EXPECTED)
        return cls(int(match[1]), _SECONDS[match[2]])

    @property
    def interval(self) -> float:
        """Seconds from one request to the next in the long run."""
        return self.seconds / self.count

    def share(self, parts: int) -> "Rate":
        """One of so many equal parts. Each still admits a single request at once."""
        count = self.count / parts
        return Rate(count, self.seconds) if count >= 1 else Rate(1, self.seconds / count)

    def __str__(self) -> str:
        return f"{self.count:g} requests in {self.seconds:g} s"


class GCRA:
    """Limits every caller to a rate, in constant time and memory (generic cell rate algorithm, ITU-T I.371).

    It stores one time for each caller: the end of the requests admitted so far if they had come one ``interval``
    apart. That time may be up to ``seconds`` in the future, which is ``count`` requests at once. Belongs to one thread.

    Args:
        callers: how many are stored; beyond that, the caller that has been quiet longest is dropped and starts anew.
    """

    def __init__(self, callers: int = 65_536) -> None:
        self._callers = callers
        self._due: OrderedDict[str, float] = OrderedDict()

    def wait(self, caller: str, rate: Rate, now: float) -> float:
        """Count a request of this caller at ``now``, in seconds on any monotonic clock.

        Returns:
            0 if it is within the rate; else the seconds after which it would be. Then it does not count.
        """
        due = max(self._due.get(caller, now), now) + rate.interval
        ahead = due - now - rate.seconds
        if ahead > 1e-9:  # sums of intervals have rounding errors
            self._due.move_to_end(caller)
            return ahead
        self._due[caller] = due
        self._due.move_to_end(caller)
        if len(self._due) > self._callers:
            self._due.popitem(last=False)
        return 0.0
