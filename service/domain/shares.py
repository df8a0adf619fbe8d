"""How callers share a finite resource: places in the queue, bytes, requests in flight.

A resource has a capacity C and, above it, a reserve R. A caller that holds h of it gets x more if one of these holds;
T is held in all, and n callers hold some, this one included:

    T + x ≤ C      and  h + x ≤ C / n               its share
    T + x ≤ C + R  and  h = 0                       the first request of a newcomer
    T + x ≤ C + R  and  h + x ≤ C + R − (T + x)     no more than what it leaves free

and h + x ≤ C. So a caller that is alone may hold C. When another comes, a caller above its share keeps what it holds
and gets no more, and the newcomer finds the reserve: those above their share do not get it. The third rule is the
dynamic threshold of switch buffers (Choudhury and Hahne, 1998). Where many callers hold little, it allows more than
C / n to one of them.
"""

from typing import NamedTuple


class Capacity(NamedTuple):
    """What there is of a resource, and the ``reserve`` above it."""

    size: int
    reserve: int

    @classmethod
    def of(cls, size: int, largest: int = 1) -> "Capacity":
        """With a reserve of a quarter, but room for the ``largest`` request."""
        return cls(size, max(size // 4, largest))

    def has_room(self, amount: int, held: int, total: int, callers: int) -> bool:
        """Whether a caller that holds ``held`` gets ``amount`` more; see the module."""
        after, own = total + amount, held + amount
        if after <= self.size and own * callers <= self.size:
            return True
        free = self.size + self.reserve - after
        return free >= 0 and own <= self.size and (not held or own <= free)

    def is_over_share(self, own: int, callers: int) -> bool:
        """Whether ``own`` is more than an equal share."""
        return own * callers > self.size


class Shares:
    """What each caller holds of a resource. Belongs to one thread."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.total = 0
        self._held: dict[str, int] = {}

    def take(self, caller: str, amount: int) -> bool:
        """Give ``amount`` to the caller, if it has room."""
        held = self._held.get(caller, 0)
        callers = len(self._held) + (not held)
        # If all together hold no more than one share, no caller has more.
        is_little = (self.total + amount) * callers <= self.capacity.size
        if not is_little and not self.capacity.has_room(amount, held, self.total, callers):
            return False
        self._held[caller] = held + amount
        self.total += amount
        return True

    def give_back(self, caller: str, amount: int) -> None:
        """Take back what the caller has no more use for."""
        self.total -= amount
        left = self._held.get(caller, 0) - amount
        if left:
            self._held[caller] = left
        else:
            self._held.pop(caller, None)

    def is_over_share(self, caller: str, amount: int) -> bool:
        """Whether the caller would hold more than an equal share with ``amount`` more."""
        held = self._held.get(caller, 0)
        return self.capacity.is_over_share(held + amount, len(self._held) + (not held))
