"""What a scheduler reports to metrics and statistics: once in a turn of the event loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from service.domain.tasks import RequestObserver


class ModelCall(NamedTuple):
    """One call of the model. Times are in seconds of the scheduler's clock."""

    rows: int  # without padding
    padded: int
    seconds: float
    # `full`, `drained` (all rows that waited), `share` (of them) or `retry` (part of a failed
    # batch)
    reason: str
    ended: float


class Finished(NamedTuple):
    """A request that ended."""

    rows: int
    outcome: str  # `ok` or an error code
    queue_s: float  # seconds from submission until its first row entered a batch
    compute_s: float  # seconds from then until its end


@dataclass(slots=True)
class Report:
    """What has happened since the last report."""

    calls: list[ModelCall] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)  # error codes
    cancelled: list[int] = field(default_factory=list)  # unfinished rows of callers that left
    early_exits: int = 0  # rows that met their tolerance before their last step
    limits: list[int] = field(default_factory=list)  # new largest batches of devices out of memory
    devices_lost: int = 0  # devices that fail every call from now on
    workers_replaced: int = 0  # threads that died


OnBatch = Callable[[Sequence[RequestObserver | None], float, float, int], None]
"""Called after a batch ran, with the observers of its rows, the times at which it began and ended,
and the number of steps that every row took.
"""
