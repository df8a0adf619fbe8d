"""The fair queue: rows that wait for a batch, and which of them run next."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from service.scheduling.request import ScheduledRequest, Slice

MAX_SKIPS: Final = 64  # at most every second row of a caller is one that missed this many batches


class _CallerQueue:
    """The waiting slices of one caller, each in both orders."""

    def __init__(self) -> None:
        # Steps applied, deadline, seq, slice; in this order.
        self.by_progress: list[tuple[int, float, int, Slice]] = []
        # With the number of the latest batch at arrival.
        self.by_arrival = OrderedDict[Slice, int]()
        self.last_was_starved = False

    def next(self, starved_before: int) -> Slice:
        """The slice whose row is next. Those that arrived up to ``starved_before`` starve."""
        # At most every second row is a starved one. Behind a very long queue all rows are starved,
        # and a short request would otherwise wait for the whole queue.
        oldest, number = next(iter(self.by_arrival.items()))
        self.last_was_starved = number <= starved_before and not self.last_was_starved
        return oldest if self.last_was_starved else self.by_progress[0][3]

    def remove(self, piece: Slice) -> None:
        entry = (piece.steps, piece.request.deadline, piece.seq)
        del self.by_progress[bisect_left(self.by_progress, entry)]
        del self.by_arrival[piece]
        piece.seq = 0


class FairQueue:
    """Rows that wait for a place in a batch.

    The places of a batch go to the callers in turn, which is to the one that has had least. Within
    a caller the rows with the fewest steps go first, ties by earliest deadline, then by arrival; at
    most every second place goes to a row that missed `MAX_SKIPS` batches. Pushing a slice or taking
    a row costs O(log slices).
    """

    def __init__(self) -> None:
        self._callers = OrderedDict[str, _CallerQueue]()  # the next one first
        self._last_seq = 0
        self._batch_number = 0
        self.row_count = 0

    def push(self, slices: Iterable[Slice]) -> None:
        """Add slices that are not in the queue."""
        for piece in slices:
            self._last_seq += 1
            piece.seq = self._last_seq
            self.row_count += piece.count
            request = piece.request
            caller = self._callers.get(request.params.key)
            if caller is None:
                caller = self._callers[request.params.key] = _CallerQueue()
            insort(caller.by_progress, (piece.steps, request.deadline, piece.seq, piece))
            caller.by_arrival[piece] = self._batch_number

    def take(self, places: int, now: float) -> tuple[list[Slice], list[ScheduledRequest]]:
        """Take at most ``places`` rows for a batch.

        Returns the slices, which are cut if only a part of their rows is taken, and the requests
        whose rows had a place but have expired. What else waits of these is still in the queue.
        """
        self._batch_number += 1
        slices = self._take_all() if self.row_count <= places else self._take_some(places)
        expired = dict[ScheduledRequest, None]()
        for piece in slices:
            if piece.request.expires <= now:
                expired[piece.request] = None
        if expired:
            slices = [piece for piece in slices if piece.request not in expired]
        return slices, list(expired)

    def remove(self, request: ScheduledRequest) -> None:
        """Remove all waiting rows of a request."""
        caller = self._callers.get(request.params.key)
        if caller is None:
            return
        for piece in request.slices:
            if piece.seq:
                self.row_count -= piece.count
                caller.remove(piece)
        if not caller.by_arrival:
            del self._callers[request.params.key]

    def _take_all(self) -> list[Slice]:
        # There is a place for every row, so no order is needed.
        slices = list[Slice]()
        for caller in self._callers.values():
            slices += caller.by_arrival
        for piece in slices:
            piece.seq = 0
        self._callers.clear()
        self.row_count = 0
        return slices

    def _take_some(self, places: int) -> list[Slice]:
        self.row_count -= places
        taken = dict[Slice, int]()
        for _ in range(places):
            key, caller = next(iter(self._callers.items()))
            piece = caller.next(self._batch_number - MAX_SKIPS - 1)
            taken[piece] = count = taken.get(piece, 0) + 1
            if count == piece.count:
                caller.remove(piece)
            if caller.by_arrival:
                self._callers.move_to_end(key)
            else:
                del self._callers[key]
        return [piece.cut(count) if piece.seq else piece for piece, count in taken.items()]
