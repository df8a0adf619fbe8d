"""The fair queue: rows that wait for a batch, and which of them run next.

The queue has no lock of its own. The scheduler's queue is guarded by the lock of
`service.scheduling.worker_pool.WorkerPool`.
"""

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Final

from service.scheduling.request import Row, ScheduledRequest

MAX_SKIPS: Final = 64
"""At most every second row of a caller is one that missed this many batches."""

_STALE_ALLOWANCE: Final = 64  # stale entries that are always tolerated, so that short queues are never rebuilt

_ByProgress = tuple[int, float, int, Row]  # steps applied, deadline, queue_seq, row: heap order
_ByArrival = tuple[int, int, Row]  # number of the latest batch at arrival, queue_seq, row: order of waiting


class CallerQueue:
    """The waiting rows of one caller.

    Every row is in a heap ordered by progress and in a deque ordered by arrival. Removing a row from the middle of
    either would cost O(rows), so removed entries stay and become stale: an entry counts only while its number is
    the row's `queue_seq`.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.row_count = 0
        self._by_progress: list[_ByProgress] = []
        self._by_arrival: deque[_ByArrival] = deque()
        self._last_was_starved = False

    def push(self, row: Row, batch_number: int) -> None:
        """Add a row whose `queue_seq` is new; ``batch_number`` is that of the latest batch."""
        heappush(self._by_progress, (row.steps, row.request.deadline, row.queue_seq, row))
        self._by_arrival.append((batch_number, row.queue_seq, row))
        self.row_count += 1
        if max(len(self._by_progress), len(self._by_arrival)) > 2 * self.row_count + _STALE_ALLOWANCE:
            self.compact()

    def pop(self, starved_before: int) -> Row:
        """The next row; there must be one. Rows that arrived at or before batch ``starved_before`` are starved.

        At most every second row is a starved one. Behind a very long queue all rows are starved, and a short request
        would otherwise wait for the whole queue.
        """
        row = None if self._last_was_starved else self._pop_starved(starved_before)
        self._last_was_starved = row is not None
        if row is None:
            row = self._pop_fewest_steps()
        row.queue_seq = 0
        self.row_count -= 1
        return row

    def rows(self) -> list[Row]:
        """All rows, in order of arrival."""
        return [row for _, seq, row in self._by_arrival if row.queue_seq == seq]

    def compact(self) -> None:
        """Drop stale entries once they outnumber the valid ones: constant cost per entry, bounded memory."""
        bound = 2 * self.row_count + _STALE_ALLOWANCE
        if len(self._by_progress) > bound:
            self._by_progress = [entry for entry in self._by_progress if entry[3].queue_seq == entry[2]]
            heapify(self._by_progress)
        if len(self._by_arrival) > bound:
            self._by_arrival = deque(entry for entry in self._by_arrival if entry[2].queue_seq == entry[1])

    def _pop_starved(self, starved_before: int) -> Row | None:
        by_arrival = self._by_arrival
        while by_arrival:
            batch_number, seq, row = by_arrival[0]
            if row.queue_seq == seq and batch_number > starved_before:
                return None
            by_arrival.popleft()
            if row.queue_seq == seq:
                return row
        return None

    def _pop_fewest_steps(self) -> Row:
        while True:
            _, _, seq, row = heappop(self._by_progress)
            if row.queue_seq == seq:
                return row


class FairQueue:
    """Rows that wait for a place in a batch.

    The places of a batch go round robin to the callers' fairness keys. Within a key the rows with the fewest steps
    applied go first, ties by earliest deadline, then by arrival; at most every second place goes to a row that missed
    `MAX_SKIPS` batches.
    Pushing and taking a row cost O(log rows), and O(1) while all rows fit the batch: then there is nothing to order.
    """

    def __init__(self) -> None:
        self._callers: dict[str, CallerQueue] = {}
        self._ring: deque[CallerQueue] = deque()  # the callers in round-robin order, the next one first
        self._last_seq = 0
        self._batch_number = 0
        self._new: list[Row] = []  # pushed since the last `take`; not in the queue of their caller yet
        self._filed_seq = 0  # the `queue_seq` of the latest row that is in the queue of its caller
        self.row_count = 0
        """Rows in the queue."""

    def push(self, row: Row) -> None:
        """Add a row that is not in the queue."""
        self._last_seq += 1
        row.queue_seq = self._last_seq
        self.row_count += 1
        self._new.append(row)

    def take(self, places: int, now: float) -> tuple[list[Row], list[ScheduledRequest]]:
        """Take the rows of one batch out of the queue.

        Args:
            places: most rows to take.
            now: time on the scheduler's clock. Rows of requests that expired are dropped, as are those of closed ones.

        Returns:
            The rows, and the requests found expired.
        """
        if self.row_count <= places:
            return self._take_all(now)
        self._file_new()
        self._batch_number += 1
        starved_before = self._batch_number - MAX_SKIPS - 1
        taken: list[Row] = []
        expired: list[ScheduledRequest] = []
        ring = self._ring
        while len(taken) < places and ring:
            caller = ring.popleft()
            if caller.row_count:
                row = caller.pop(starved_before)
                self.row_count -= 1
                if row.request.expires <= now:
                    expired.append(row.request)
                if row.request.closed or row.request.expires <= now:
                    self.remove(row.request)
                else:
                    taken.append(row)
            if caller.row_count:
                ring.append(caller)
            else:
                del self._callers[caller.key]
        return taken, expired

    def remove(self, request: ScheduledRequest) -> None:
        """Remove all waiting rows of a request."""
        caller = self._callers.get(request.params.key)
        for row in request.rows:
            if not row.queue_seq:
                continue
            self.row_count -= 1
            if row.queue_seq <= self._filed_seq and caller is not None:
                caller.row_count -= 1
            row.queue_seq = 0  # its entry in `_new` or in the caller's queue becomes stale
        # A caller without rows stays in the ring until `take` reaches it.
        if caller is not None:
            caller.compact()
        if len(self._new) > 2 * self.row_count + _STALE_ALLOWANCE:
            self._new = [row for row in self._new if row.queue_seq]

    def _take_all(self, now: float) -> tuple[list[Row], list[ScheduledRequest]]:
        """Take every row: there is a place for each, so no order is needed."""
        rows, self._new = self._new, []
        if self._ring:
            rows = [row for caller in self._ring for row in caller.rows()] + rows
            self._ring.clear()
            self._callers.clear()
        self.row_count, self._filed_seq = 0, self._last_seq
        self._batch_number += 1
        taken: list[Row] = []
        expired: list[ScheduledRequest] = []
        for row in rows:
            if not row.queue_seq:
                continue
            row.queue_seq, request = 0, row.request
            if request.expires > now and not request.closed:
                taken.append(row)
                continue
            if request.expires <= now:
                expired.append(request)
            for other in request.rows:
                other.queue_seq = 0
        return taken, expired

    def _file_new(self) -> None:
        """Put new rows into the queues of their callers."""
        rows, self._new = self._new, []
        for row in rows:
            if not row.queue_seq:
                continue
            key = row.request.params.key
            caller = self._callers.get(key)
            if caller is None:
                caller = self._callers[key] = CallerQueue(key)
                self._ring.append(caller)
            caller.push(row, self._batch_number)
        self._filed_seq = self._last_seq
