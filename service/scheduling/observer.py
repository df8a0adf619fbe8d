"""What a scheduler reports to metrics and statistics."""

from collections.abc import Sequence
from typing import NamedTuple


class Finished(NamedTuple):
    """A request that ended."""

    rows: int
    outcome: str  # `ok` or an error code
    queue_s: float  # seconds from submission until its first row entered a batch
    compute_s: float  # seconds from then until its end


class SchedulerObserver:
    """Receives what metrics count; a subclass overrides the methods that it needs.

    They are called on the event loop, so they must be quick.
    """

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """One model call ran, with so many rows without and with padding.

        ``reason`` is `full`, `drained` (all rows that were waiting), `share` (of them) or `retry` (part of a failed
        batch).
        """

    def finished(self, requests: Sequence[Finished]) -> None:
        """These requests ended together."""

    def rejected(self, reason: str) -> None:
        """A request was rejected; ``reason`` is the code of the error."""

    def cancelled(self, rows: int) -> None:
        """A caller left before so many of its rows were finished."""

    def early_exit(self, rows: int) -> None:
        """So many rows met their tolerance before their last step."""

    def reduce_max_batch(self, batch_rows: int) -> None:
        """A device ran out of memory; ``batch_rows`` is its largest batch now."""

    def device_lost(self) -> None:
        """A device fails every call from now on."""

    def worker_replaced(self) -> None:
        """A worker's thread died and another one replaced it."""
