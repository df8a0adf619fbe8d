"""How often a caller may ask: rates, and the arithmetic that holds callers to them."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

EXPECTED: Final = "requests per second or minute such as 20/s or 600/m"
_SECONDS: Final = {"s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` requests in ``seconds``: so many at once after a rest, and in the long run one every ``interval``."""

    count: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read `20/s` or `600/m`.

        Raises:
            ValueError: anything else; the text says what was expected.
        """
        found = re.fullmatch(r"([1-9][0-9]{0,8})/([sm])", text)
        if found is None:
            raise ValueError(EXPECTED)
        return cls(int(found[1]), _SECONDS[found[2]])

    @property
    def interval(self) -> float:
        """Seconds from one request to the next in the long run."""
        return self.seconds / self.count

    def share(self, parts: int) -> "Rate":
        """One of so many equal parts; each still lets a single request through at once."""
        count = self.count / parts
        return Rate(count, self.seconds) if count >= 1 else Rate(1, self.seconds / count)

    def __str__(self) -> str:
        return f"{self.count:g} requests in {self.seconds:g} s"


class Meter:
    """Holds every caller to a rate, in constant time and memory (the generic cell rate algorithm, ITU-T I.371).

    It keeps one number for a caller: when the requests let through so far would be over, had they come one
    ``interval`` apart. A caller may be ahead of that by the rate's ``seconds``, which is ``count`` requests at once.
    Belongs to one thread.

    Args:
        callers: how many are remembered; past that, who has been quiet longest is forgotten and starts afresh.
    """

    def __init__(self, callers: int = 65_536) -> None:
        self._callers = callers
        self._due: OrderedDict[str, float] = OrderedDict()

    def wait(self, caller: str, rate: Rate, now: float) -> float:
        """Count a request of this caller at ``now`` (seconds on any clock that does not go back).

        Returns:
            0 if it is within the rate; else the seconds after which it would be, and it does not count.
        """
        due = max(self._due.get(caller, now), now) + rate.interval
        ahead = due - now - rate.seconds
        if ahead > 1e-9:  # sums of intervals are not exact
            self._due.move_to_end(caller)
            return ahead
        self._due[caller] = due
        self._due.move_to_end(caller)
        if len(self._due) > self._callers:
            self._due.popitem(last=False)
        return 0.0
