"""Read error responses."""

import json
import math
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from ign_client._errors import FieldError, Problem
from ign_client._wire import Response


def problem_of(response: Response, now: float) -> Problem:
    """The problem in an error response of the service, or of a proxy in front of it.

    Args:
        response: of any error status and any content type.
        now: seconds since the epoch, for a Retry-After that is a date.
    """
    try:
        document = json.loads(response.content)
    except ValueError:
        document = None
    return from_document(
        document if isinstance(document, dict) else {},
        status=response.status,
        request_id=response.request_id,
        retry_after=retry_after(response, now),
    )


def from_document(
    document: dict[str, Any], *, status: int, request_id: str | None = None, retry_after: float | None = None
) -> Problem:
    """The problem in an error document; missing and invalid members get a default."""
    texts = {name: value for name, value in document.items() if isinstance(value, str) and value}
    return Problem(
        status=status,
        code=texts.get("code", "unknown"),
        detail=texts.get("detail") or _phrase(status),
        request_id=request_id or texts.get("request_id"),
        retry_after=retry_after,
        errors=_fields(document.get("errors")),
    )


def retry_after(response: Response, now: float) -> float | None:
    """Seconds of a Retry-After header, which holds a number or an HTTP date; None if it is missing or invalid."""
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)  # HTTP dates are in UTC, also without a zone
            seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
        except (ValueError, OverflowError, OSError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _fields(errors: object) -> tuple[FieldError, ...]:
    items = errors if isinstance(errors, list) else []
    return tuple(
        FieldError(str(error.get("field", "")), str(error.get("message", "")))
        for error in items
        if isinstance(error, dict)
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an error without a description"
