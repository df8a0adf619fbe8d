"""What a scheduler reports to metrics and statistics."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Finished(NamedTuple):
    """A request that ended.

    Args:
        rows: number of its rows.
        outcome: `ok` or an error code.
        queue_s: seconds from submission until its first row entered a batch.
        compute_s: seconds from then until its end.
    """

    rows: int
    outcome: str
    queue_s: float
    compute_s: float


class SchedulerObserver(Protocol):
    """Receives what metrics count.

    Its methods are called from workers' threads and from the event loop, so they must be quick and thread-safe. Each
    method does nothing by default; a subclass overrides those it needs.
    """

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """One model call ran.

        Args:
            rows: rows in it, without padding.
            padded: rows with padding.
            seconds: its duration.
            reason: `full`, `drained` (all rows that were waiting) or `retry` (part of a failed batch).
        """
        return

    def finished(self, requests: Sequence[Finished]) -> None:
        """These requests ended together."""
        return

    def rejected(self, reason: str) -> None:
        """A request was rejected; ``reason`` is the code of the error."""
        return

    def cancelled(self, rows: int) -> None:
        """A caller left before so many of its rows were finished."""
        return

    def early_exit(self, rows: int) -> None:
        """So many rows met their tolerance before their last step."""
        return

    def reduce_max_batch(self, batch_rows: int) -> None:
        """A device ran out of memory; ``batch_rows`` is its largest batch now."""
        return

    def device_lost(self) -> None:
        """A device fails every call from now on."""
        return

    def worker_replaced(self) -> None:
        """A worker's thread died and another one replaced it."""
        return


class NullObserver(SchedulerObserver):
    """An observer that ignores everything."""
