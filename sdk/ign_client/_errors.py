"""The errors of the client, as one tree by cause.

The client raises 408, 429, 502, 503, 504 and `TransportError` only after the last retry.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

_RETRIED: Final = frozenset({408, 429, 502, 503, 504})


class IgnError(Exception):
    """Base of all errors that this client raises on purpose; ``retryable``: whether the same call
    may succeed later.
    """

    retryable = False


class InputError(IgnError, ValueError):
    """An argument is invalid; the text names it and the reason. Nothing was sent."""


class TransportError(IgnError):
    """There was no response. `__cause__` is the exception of httpx."""

    retryable = True


class ConnectionFailed(TransportError):
    """No connection, or it broke."""


class TimedOut(TransportError):
    """The service did not answer in time."""


class UnexpectedAnswer(IgnError):
    """The response is not one of ign-service: of another server or a proxy, damaged, too large, or
    ended early.
    """

    def __init__(self, detail: str, request_id: str | None = None) -> None:
        super().__init__(detail, request_id)
        self.detail = detail
        self.request_id = request_id

    def __str__(self) -> str:
        return _with_id(self.detail, self.request_id)


@contextmanager
def unexpected(what: str, request_id: str | None = None) -> Iterator[None]:
    """Raise `UnexpectedAnswer` for every error in the block, which parses what a server has
    sent.
    """
    try:
        yield
    except IgnError:
        raise
    except Exception as exc:  # hostile responses make parsers raise nearly every built-in exception
        raise UnexpectedAnswer(f"{what} ({type(exc).__name__}: {exc!s:.200})", request_id) from exc


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request, as a dotted path such as ``points.1.seed``, and what is wrong with
    it.
    """

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error document of the service (RFC 9457)."""

    status: int
    # a stable name for programs to compare; ``unknown`` if the response is no problem document
    code: str
    detail: str
    request_id: str | None = None  # identifies the request in the log of the service
    retry_after: float | None = None  # seconds until the next attempt
    retryable: bool = False  # whether the same request may succeed later
    errors: tuple[FieldError, ...] = ()


BY_STATUS: dict[int | None, type["StatusError"]] = {}


class StatusError(IgnError):
    """An error response; members of `problem` are attributes, too. A status without its own class
    is raised as this.
    """

    def __init_subclass__(cls, status: int | None = None) -> None:
        BY_STATUS[status] = cls

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.request_id = problem.request_id
        self.retry_after = problem.retry_after
        self.retryable = problem.retryable
        self.errors = problem.errors

    def __str__(self) -> str:
        return _with_id(f"{self.status} {self.code}: {self.detail}", self.request_id)


class BadRequest(StatusError, status=400):
    """400: not JSON, invalid multipart, or an invalid header value."""


class Unauthorized(StatusError, status=401):
    """401: API key missing or unknown."""


class Forbidden(StatusError, status=403):
    """403: API key without the scope."""


class NotFound(StatusError, status=404):
    """404: no such model, version or path; ``code`` says which."""


class MethodNotAllowed(StatusError, status=405):
    """405: the path has no such method."""


class NotAcceptable(StatusError, status=406):
    """406: the endpoint does not offer this response format."""


class BodyTooSlow(StatusError, status=408):
    """408: the body of the request did not arrive in time."""


class TooLarge(StatusError, status=413):
    """413: body or image above a limit."""


class UnsupportedMedia(StatusError, status=415):
    """415: content type or content encoding of the request."""


class InvalidContent(StatusError, status=422):
    """422: a value, image, array or mask is invalid; ``errors`` names the fields."""


class TooManyRequests(StatusError, status=429):
    """429: queue full, deadline too short for the queue, or rate limit exceeded."""


class ServiceFailed(StatusError, status=500):
    """500, and any 5xx without its own class."""


class BadGateway(StatusError, status=502):
    """502: a proxy could not reach the service."""


class Unavailable(StatusError, status=503):
    """503: loading, draining, or too many requests in flight."""


class DeadlineExceeded(StatusError, status=504):
    """504: the deadline passed, or was too short; ``code`` says which."""


def status_error(problem: Problem) -> StatusError:
    error = BY_STATUS.get(problem.status) or (
        ServiceFailed if problem.status > 500 else StatusError
    )
    return error(problem)


def problem_from(
    document: dict[str, Any], status: int, request_id: str | None, headers: Mapping[str, str]
) -> Problem:
    """The problem in an error document; missing and invalid members get a default."""
    texts = _texts(document)
    phrase = (
        HTTPStatus(status).phrase if status in set(HTTPStatus) else "an error without a description"
    )
    found = document.get("errors")
    members = (
        [_texts(error) for error in found if isinstance(error, dict)]
        if isinstance(found, list)
        else []
    )
    is_refused = headers.get("x-should-retry", "").strip().lower() == "false"
    return Problem(
        status=status,
        code=texts.get("code", "unknown"),
        detail=texts.get("detail", phrase),
        request_id=request_id or texts.get("request_id"),
        retry_after=retry_after(headers),
        retryable=status in _RETRIED and not is_refused,
        errors=tuple(
            FieldError(error.get("field", ""), error.get("message", "")) for error in members
        ),
    )


def _texts(document: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in document.items() if isinstance(value, str) and value}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which holds a number or an HTTP date; None if it is missing
    or invalid.
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:  # by the clock of the server; HTTP dates are in UTC, also without a zone
            date, sent = (
                parsedate_to_datetime(each).replace(tzinfo=None) for each in (text, headers["date"])
            )
            seconds = (date - sent).total_seconds()
        except (LookupError, TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _with_id(text: str, request_id: str | None) -> str:
    return f"{text} (request {request_id})" if request_id else text
