"""What callers and operators are told of failures."""

import logging
from collections.abc import Sequence
from typing import Final

from service.domain.errors import IgnError, ModelFailure
from service.scheduling.request import ScheduledRequest

logger = logging.getLogger(__name__)
_MAX_REASON: Final = 400  # characters
_MAX_LOGGED_IDS: Final = 16  # of requests, in one line of the log


def model_failure(text: str, cause: BaseException | None) -> ModelFailure:
    """A failure whose reason, for the operator, is what the model raised."""
    failure = ModelFailure(text, reason="" if cause is None else reason_of(cause))
    failure.__cause__ = cause
    return failure


def reason_of(exc: BaseException) -> str:
    """The first line of an error, or of the reason of a `ModelFailure`."""
    reason = exc.reason if isinstance(exc, ModelFailure) else str(exc)
    return "".join(reason.splitlines()[:1])[:_MAX_REASON] or type(exc).__name__


def log_failures(errors: Sequence[tuple[ScheduledRequest, IgnError]], rows: int) -> None:
    """Log a line for each cause of the failures of a batch of so many rows."""
    by_cause = dict[str, list[str]]()
    for request, error in errors:
        if isinstance(error, ModelFailure):
            by_cause.setdefault(error.reason, []).append(request.params.request_id)
    for reason, names in by_cause.items():
        text = "the model failed on %d of %d rows: %s%s"
        logger.error(text, len(names), rows, reason, _request_ids(names))


def log_device_lost(
    cause: BaseException | None, alive: int, requests: Sequence[ScheduledRequest]
) -> None:
    """Log that a device is lost, and how many others are left."""
    text = "a device is lost: %s. It fails every call until this process is started anew%s%s"
    others = f"; others go on, {alive} of them" if alive else ""
    names = [request.params.request_id for request in requests]
    logger.critical(text, cause, others, _request_ids(names))


def _request_ids(names: Sequence[str]) -> str:
    # The end of a line of the log.
    ids = [name for name in dict.fromkeys(names) if name]
    more = f" and {len(ids) - _MAX_LOGGED_IDS} more" if len(ids) > _MAX_LOGGED_IDS else ""
    return f"; requests {', '.join(ids[:_MAX_LOGGED_IDS])}{more}" if ids else ""
