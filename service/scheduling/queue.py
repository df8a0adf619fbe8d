"""Rows that wait: what a request is made of, and which of its rows runs next.

Nothing here knows threads, asyncio or the model: it all belongs to the executor thread of `service.scheduling.scheduler`, which
is what lets it go without locks.
"""

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Final

from service.scheduling.request import Row, ScheduledRequest

PATIENCE: Final = 64
"""A row passed over this often goes first among the rows of its caller."""

_SLACK: Final = 64  # stale queue entries that are always tolerated, so that short queues are never rebuilt


_Entry = tuple[int, float, int, Row]  # steps behind it, deadline, ticket, row: heap order
_Turn = tuple[int, int, Row]  # passes formed before it came, ticket, row: order of waiting


class _Lane:
    """Waiting rows of one caller. Entries whose ticket is no longer the row's are stale and skipped."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.live = 0
        self._least: list[_Entry] = []
        self._longest: deque[_Turn] = deque()
        self._aged_last = False

    def push(self, row: Row, passes: int) -> None:
        heappush(self._least, (row.steps, row.request.deadline, row.ticket, row))
        self._longest.append((passes, row.ticket, row))
        self.live += 1
        self.tidy()

    def pop(self, overdue: int) -> Row:
        """The next row; there must be one. Rows that came at or before pass ``overdue`` have waited too long.

        Overdue rows get every second place at most: behind a very long queue they would otherwise be all that
        runs, and a short request would wait for the whole of it.
        """
        row = None if self._aged_last else self._pop_overdue(overdue)
        self._aged_last = row is not None
        if row is None:
            row = self._pop_least()
        row.ticket = 0
        self.live -= 1
        return row

    def _pop_overdue(self, overdue: int) -> Row | None:
        longest = self._longest
        while longest:
            passes, ticket, row = longest[0]
            if row.ticket == ticket and passes > overdue:
                return None
            longest.popleft()
            if row.ticket == ticket:
                return row
        return None

    def _pop_least(self) -> Row:
        while True:
            _, _, ticket, row = heappop(self._least)
            if row.ticket == ticket:
                return row

    def tidy(self) -> None:
        """Drop stale entries once they outnumber the live ones: constant cost per entry, bounded memory."""
        bound = 2 * self.live + _SLACK
        if len(self._least) > bound:
            self._least = [entry for entry in self._least if entry[3].ticket == entry[2]]
            heapify(self._least)
        if len(self._longest) > bound:
            self._longest = deque(turn for turn in self._longest if turn[2].ticket == turn[1])


class FairQueue:
    """Rows that wait for a place in a batch.

    Places are dealt round robin to caller keys. Within a key the rows with the fewest steps behind them go first,
    ties by earliest deadline, then by arrival; a row passed over `PATIENCE` times goes first. Pushing and taking a
    row cost O(log rows).
    """

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._ring: deque[_Lane] = deque()
        self._tickets = 0
        self._passes = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, row: Row) -> None:
        """Let a row wait."""
        key = row.request.params.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            self._ring.append(lane)
        self._tickets += 1
        row.ticket = self._tickets
        self._live += 1
        lane.push(row, self._passes)

    def take(self, places: int, now: float) -> tuple[list[Row], list[ScheduledRequest]]:
        """Form one batch: the rows that get a place, and the requests met on the way that had expired.

        Rows of expired and of closed requests leave the queue; they take no place.
        """
        self._passes += 1
        overdue = self._passes - PATIENCE - 1
        taken: list[Row] = []
        expired: list[ScheduledRequest] = []
        ring = self._ring
        while len(taken) < places and ring:
            lane = ring.popleft()
            if lane.live:
                row = lane.pop(overdue)
                self._live -= 1
                if row.request.expires <= now:
                    expired.append(row.request)
                if row.request.closed or row.request.expires <= now:
                    self.forget(row.request)
                else:
                    taken.append(row)
            if lane.live:
                ring.append(lane)
            else:
                del self._lanes[lane.key]
        return taken, expired

    def forget(self, request: ScheduledRequest) -> None:
        """Take all waiting rows of a request out."""
        lane = self._lanes.get(request.params.key)
        waiting = [row for row in request.members if row.ticket]
        if lane is None or not waiting:
            return
        for row in waiting:
            row.ticket = 0
        lane.live -= len(waiting)
        self._live -= len(waiting)
        lane.tidy()
