"""Connections whose last request was rejected: each may send the next one in its turn.

A client that ignores `Retry-After` comes back at once, and a rejection takes CPU time that accepted requests then lack.
So the number of rejections follows from the number of other responses, not from the number of such clients.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

READS_PER_RESPONSE: Final = 4
"""Rejected connections that may read on for each other response: at five times the capacity no rejection waits."""
MANY_WAITING: Final = 512
"""More connections wait only if their clients come back at once. Then `READS_PER_RESPONSE_OF_MANY` applies."""
READS_PER_RESPONSE_OF_MANY: Final = 0.25
"""Used instead of `READS_PER_RESPONSE` while more than `MANY_WAITING` connections wait. A rejection takes about a third
of the CPU time of a small picture, so rejections then take about a twelfth of the time of pictures."""
READS_PER_S: Final = 250.0
"""Rejected connections that may read on in any case, however slow the model is: up to 4 % of the event loop's time."""
MAX_CREDIT: Final = 256.0
"""Rejected connections that may read on at once: what the responses of one batch of 64 rows allow."""
_TICK_S: Final = 0.02
_REJECTED: Final = frozenset((429, 503))


class RejectedConnections:
    """The rejected connections of one event loop, in the order of their rejections."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._ticks = False
        self._credit, self._counted_at = MAX_CREDIT, 0.0

    def on_response(self, status: int, now: float) -> bool:
        """Count a response; returns whether its connection has to `wait`.

        Args:
            status: of the response.
            now: event loop time.
        """
        if status not in _REJECTED:
            self._earn(READS_PER_RESPONSE if len(self._waiting) <= MANY_WAITING else READS_PER_RESPONSE_OF_MANY)
            return False
        if not self._waiting:
            self._earn_for_time(now)
            if self._credit >= 1:
                self._credit -= 1
                return False
        return True

    def wait(self, read_on: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call ``read_on`` when it is the connection's turn."""
        if not self._ticks:
            self._ticks = True
            loop.call_later(_TICK_S, self._tick, loop)
        self._waiting.append(read_on)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._earn_for_time(loop.time())
        self._ticks = bool(self._waiting)
        if self._ticks:
            loop.call_later(_TICK_S, self._tick, loop)

    def _earn_for_time(self, now: float) -> None:
        seconds, self._counted_at = now - self._counted_at, now
        self._earn(seconds * READS_PER_S)

    def _earn(self, reads: float) -> None:
        self._credit = min(MAX_CREDIT, self._credit + reads)
        while self._waiting and self._credit >= 1:
            self._credit -= 1
            self._waiting.popleft()()
