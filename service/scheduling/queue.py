"""The fair queue: rows that wait for a batch, and which of them run next."""

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from service.scheduling.request import ScheduledRequest, Slice

MAX_SKIPS: Final = 64  # at most every second row of a caller is one that missed this many batches
_STALE_ALLOWANCE: Final = 64  # stale entries that are always tolerated, so that short queues are never rebuilt

_ByProgress = tuple[int, float, int, Slice]  # steps applied, deadline, seq, slice: heap order
_ByArrival = tuple[int, int, Slice]  # number of the latest batch at arrival, seq, slice: order of waiting


class _CallerQueue:
    """The waiting slices of one caller."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.row_count = 0
        # Every slice is in both. Removing one from the middle would cost O(slices): entries of removed slices stay and
        # become stale. An entry counts only while its number is the slice's `seq`.
        self._by_progress: list[_ByProgress] = []
        self._by_arrival: deque[_ByArrival] = deque()
        self._last_was_starved = False

    def push(self, piece: Slice, batch_number: int) -> None:
        heappush(self._by_progress, (piece.steps, piece.request.deadline, piece.seq, piece))
        self._by_arrival.append((batch_number, piece.seq, piece))
        self.row_count += piece.count
        self.compact()

    def next(self, starved_before: int) -> Slice:
        """The slice whose row is next; there must be one. Those that arrived up to ``starved_before`` starve."""
        # At most every second row is a starved one. Behind a very long queue all rows are starved, and a short request
        # would otherwise wait for the whole queue.
        piece = None if self._last_was_starved else self._starved(starved_before)
        self._last_was_starved = piece is not None
        return piece or self._fewest_steps()

    def slices(self) -> list[Slice]:
        return [piece for _, seq, piece in self._by_arrival if piece.seq == seq]

    def compact(self) -> None:
        # Once stale entries outnumber the waiting rows: constant cost per entry, bounded memory.
        bound = 2 * self.row_count + _STALE_ALLOWANCE
        if len(self._by_progress) > bound:
            self._by_progress = [entry for entry in self._by_progress if entry[3].seq == entry[2]]
            heapify(self._by_progress)
        if len(self._by_arrival) > bound:
            self._by_arrival = deque(entry for entry in self._by_arrival if entry[2].seq == entry[1])

    def _starved(self, starved_before: int) -> Slice | None:
        by_arrival = self._by_arrival
        while by_arrival:
            batch_number, seq, piece = by_arrival[0]
            if piece.seq == seq:
                return None if batch_number > starved_before else piece
            by_arrival.popleft()
        return None

    def _fewest_steps(self) -> Slice:
        while True:
            _, _, seq, piece = self._by_progress[0]
            if piece.seq == seq:
                return piece
            heappop(self._by_progress)


class FairQueue:
    """Rows that wait for a place in a batch.

    The places of a batch go round robin to the callers' fairness keys. Within a key the rows with the fewest steps go
    first, ties by earliest deadline, then by arrival; at most every second place goes to a row that missed `MAX_SKIPS`
    batches. Pushing a slice or taking a row costs O(log slices), or O(1) while all rows fit the batch.
    """

    def __init__(self) -> None:
        self._callers: dict[str, _CallerQueue] = {}
        self._ring: deque[_CallerQueue] = deque()  # the callers in round-robin order, the next one first
        self._last_seq = 0
        self._batch_number = 0
        self._new: list[Slice] = []  # pushed since the last `take`; not in the queue of their caller yet
        self._filed_seq = 0  # the `seq` of the latest slice that is in the queue of its caller
        self.row_count = 0

    def push(self, slices: Iterable[Slice]) -> None:
        """Add slices that are not in the queue."""
        for piece in slices:
            self._last_seq += 1
            piece.seq = self._last_seq
            self.row_count += piece.count
            self._new.append(piece)

    def take(self, places: int, now: float) -> tuple[list[Slice], list[ScheduledRequest]]:
        """Take at most ``places`` rows for a batch; drop those of closed requests and of requests that have expired.

        Returns the slices, which are cut if only a part of their rows is taken, and the requests found expired.
        """
        self._batch_number += 1
        if self.row_count <= places:
            return self._take_all(now)
        self._file_new()
        starved_before = self._batch_number - MAX_SKIPS - 1
        taken, expired = dict[Slice, int](), list[ScheduledRequest]()
        valid = set[ScheduledRequest]()
        ring = self._ring
        while places and ring:
            caller = ring.popleft()
            if caller.row_count:
                piece = caller.next(starved_before)
                if piece.request in valid or not self._drop(piece.request, now, expired):
                    valid.add(piece.request)
                    places -= 1
                    caller.row_count -= 1
                    self.row_count -= 1
                    taken[piece] = count = taken.get(piece, 0) + 1
                    if count == piece.count:
                        piece.seq = 0
            if caller.row_count:
                ring.append(caller)
            else:
                self._callers.pop(caller.key, None)
        return [piece.cut(count) if piece.seq else piece for piece, count in taken.items()], expired

    def remove(self, request: ScheduledRequest) -> None:
        """Remove all waiting rows of a request."""
        caller = self._callers.get(request.params.key)
        for piece in request.slices:
            if not piece.seq:
                continue
            self.row_count -= piece.count
            if piece.seq <= self._filed_seq and caller is not None:
                caller.row_count -= piece.count
            piece.seq = 0  # its entry in `_new` or in the caller's queue becomes stale
        # A caller without rows stays in the ring until `take` reaches it.
        if caller is not None:
            caller.compact()
        if len(self._new) > 2 * self.row_count + _STALE_ALLOWANCE:
            self._new = [piece for piece in self._new if piece.seq]
        if not self.row_count:  # stale entries hold the rows of their requests
            self._new.clear()
            self._ring.clear()
            self._callers.clear()

    def _take_all(self, now: float) -> tuple[list[Slice], list[ScheduledRequest]]:
        # There is a place for every row, so no order is needed.
        slices, self._new = self._new, []
        if self._ring:
            slices = [piece for caller in self._ring for piece in caller.slices()] + slices
            self._ring.clear()
            self._callers.clear()
        self._filed_seq = self._last_seq
        taken, expired = list[Slice](), list[ScheduledRequest]()
        for piece in slices:
            if not piece.seq:
                continue
            request = piece.request
            if request.closed or request.expires <= now:
                self._drop(request, now, expired)
            else:
                piece.seq = 0
                self.row_count -= piece.count
                taken.append(piece)
        return taken, expired

    def _drop(self, request: ScheduledRequest, now: float, expired: list[ScheduledRequest]) -> bool:
        """Remove a request if it is closed or has expired; returns whether it is."""
        if request.expires <= now:
            expired.append(request)
        elif not request.closed:
            return False
        self.remove(request)
        return True

    def _file_new(self) -> None:
        new, self._new = self._new, []
        for piece in new:
            if not piece.seq:
                continue
            key = piece.request.params.key
            caller = self._callers.get(key)
            if caller is None:
                caller = self._callers[key] = _CallerQueue(key)
                self._ring.append(caller)
            caller.push(piece, self._batch_number - 1)
        self._filed_seq = self._last_seq
