"""Rows that wait for a batch: which of them run next, and on which lane."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from service.scheduling.lane import Lane
from service.scheduling.request import Batch, ScheduledRequest, Slice

MAX_SKIPS: Final = 64  # at most every second row of a caller is one that missed this many batches

_OPEN_BATCHES: Final = 2  # of a GPU, or of tiles: one that runs, and the next one
_MIN_ROWS: Final = 4  # with fewer, a row takes longer on a CPU
# Of the open rows on a CPU: one is with the callers, one with the event loop, and one in the model.
# A lane has at most as many batches, which it runs while the event loop is busy.
_SHARES: Final = 3
_LARGE: Final = 16  # rows of a request for which the event loop does little beside the model
_MAX_STEPS: Final = 64  # of a batch, of which the event loop counts each when the batch ends


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

    @property
    def is_large(self) -> bool:
        """Whether the request that is next has many rows."""
        caller = next(iter(self._callers.values()), None)
        return caller is not None and caller.by_progress[0][3].count >= _LARGE

    def push(self, piece: Slice) -> None:
        """Add a slice that is not in the queue."""
        self._last_seq += 1
        piece.seq = self._last_seq
        self.row_count += piece.count
        request = piece.request
        caller = self._callers.get(request.params.key)
        if caller is None:
            caller = self._callers[request.params.key] = _CallerQueue()
        insort(caller.by_progress, (piece.steps, request.deadline, piece.seq, piece))
        caller.by_arrival[piece] = self._batch_number

    def take(self, places: int) -> list[Slice]:
        """Take at most ``places`` rows for a batch; slices are cut if only a part of their rows is
        taken.
        """
        self._batch_number += 1
        if self.row_count > places:
            return self._take_some(places)
        # There is a place for every row, so no order is needed.
        slices = list[Slice]()
        for caller in self._callers.values():
            slices += caller.by_arrival
        for piece in slices:
            piece.seq = 0
        self._callers.clear()
        self.row_count = 0
        return slices

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


class BatchFormer:
    """Forms batches of the rows that wait, for the lanes with the fewest: those after the first
    ``devices`` only run rows of large requests. ``overlaps``: see `Scheduler`. It belongs to the
    event loop.
    """

    def __init__(self, lanes: Sequence[Lane], devices: int, *, overlaps: bool) -> None:
        self.lanes = lanes  # whose device is not lost
        self._devices = devices
        self._shares = _SHARES if overlaps else 1
        # On a CPU a batch takes as long as its rows, so rows of many steps run apart from those of
        # one, in turn. A GPU computes a few rows in the time of one.
        self.short = FairQueue()
        self.long = FairQueue()
        self._is_apart = not lanes[0].has_buckets
        self._latest = self.long

    def push(self, slices: Iterable[Slice]) -> None:
        """Add slices that are in no queue, of those whose rows are not done."""
        for piece in slices:
            if not (piece.done or piece.request.closed):
                self._queue_of(piece.request).push(piece)

    def remove(self, request: ScheduledRequest) -> None:
        """Remove all waiting rows of a request."""
        self._queue_of(request).remove(request)

    def lose(self, device: int) -> int:
        """Form no further batch for a device; returns the number of lanes that are left."""
        self.lanes = [each for each in self.lanes if each.device != device]
        return len(self.lanes)

    def give(self) -> list[Batch]:
        """Give batches of the rows that wait to the lanes, until all have enough; returns those
        whose lane had none.
        """
        first = list[Batch]()
        while self.short.row_count or self.long.row_count:
            queue = self.long if self._latest is self.short else self.short
            if not queue.row_count:
                queue = self._latest
            lanes = self.lanes if queue.is_large else self.lanes[: self._devices]
            lane = min(lanes, key=lambda lane: len(lane.batches), default=None)
            if lane is None:
                break
            has_few = lane.has_buckets or lane.limit == 1
            if len(lane.batches) >= (_OPEN_BATCHES if has_few else self._shares):
                break
            self._latest = queue
            slices = queue.take(self._places(lane, queue, lanes))
            rows = sum([piece.count for piece in slices])
            is_rest = not (self.short.row_count or self.long.row_count)
            batch = Batch(
                slices=slices,
                rows=rows,
                steps=min(_MAX_STEPS, *[piece.steps_to_next_check() for piece in slices]),
                expires=min([piece.request.expires for piece in slices]),
                reason="full" if rows >= lane.limit else "drained" if is_rest else "share",
            )
            for piece in slices:
                piece.batch = batch
            if not lane.batches:
                first.append(batch)
            lane.give(batch)
        return first

    def _queue_of(self, request: ScheduledRequest) -> FairQueue:
        return self.long if self._is_apart and request.row_steps > 1 else self.short

    def _places(self, lane: Lane, queue: FairQueue, lanes: Sequence[Lane]) -> int:
        # Rows of many steps and those of a GPU are divided between the lanes that have nothing. Of
        # others a lane gets a share of those that are open, so that the model, the event loop and
        # the callers all work.
        waiting = queue.row_count
        if queue is self.long or lane.has_buckets:
            idle = sum(not each.batches for each in lanes)
            return min(lane.limit, -(-waiting // max(1, idle)))
        waiting += sum([batch.rows for each in self.lanes for batch in each.batches])
        share = -(-waiting // (self._shares * len(lanes)))
        return min(lane.limit, max(_MIN_ROWS, share))
