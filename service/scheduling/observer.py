"""What a scheduler reports to metrics and statistics."""

from typing import Protocol

from service.domain.errors import IgnError
from service.domain.tasks import Result
from service.scheduling.request import ScheduledRequest


class SchedulerObserver(Protocol):
    """What metrics hear. Called from executors' threads and from the event loop: be quick and thread-safe.

    A subclass may listen to some of it only: each method does nothing by itself.
    """

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """One call of the model; reason: `full`, `drained` (all there was), `retry` (part of a failed batch)."""
        return

    def finished(self, rows: int, outcome: str, queue_s: float, compute_s: float) -> None:
        """A request ended with outcome `ok` or the code of its error."""
        return

    def rejected(self, reason: str) -> None:
        """A request was refused; reason is the code of the error."""
        return

    def cancelled(self, rows: int) -> None:
        """A caller left, and so many of its rows were not finished."""
        return

    def early_exit(self, rows: int) -> None:
        """So many rows met their tolerance before their last step."""
        return

    def reduce_max_batch(self, batch_rows: int) -> None:
        """A device ran out of memory; its largest batch is now this."""
        return

    def lost(self) -> None:
        """A device fails every call from now on."""
        return

    def replaced(self) -> None:
        """An executor's thread died and another took its place."""
        return


class NullObserver(SchedulerObserver):
    """The observer that does not listen."""


def report(observer: SchedulerObserver, request: ScheduledRequest, outcome: Result | IgnError, now: float) -> None:
    """Tell the observer that a request has ended."""
    started = now if request.started is None else request.started
    code = outcome.error_code if isinstance(outcome, IgnError) else "ok"
    observer.finished(len(request.rows), code, started - request.arrived, now - started)
