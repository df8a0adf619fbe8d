"""The errors of the client, as one tree by cause.

The client raises 408, 429, 502, 503, 504 and `TransportError` only after the last retry.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import client as http
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


BY_STATUS: dict[int | None, type["StatusError"]] = {}


@dataclass(eq=False)
class StatusError(IgnError):
    """An error response of the service (RFC 9457), or of a proxy. A status without its own class is
    raised as this.
    """

    status: int
    # a stable name for programs to compare; ``unknown`` if the response is no problem document
    code: str
    detail: str
    request_id: str | None  # identifies the request in the log of the service
    retry_after: float | None  # seconds until the next attempt
    errors: tuple[FieldError, ...] = ()
    retryable: bool = False  # whether the same request may succeed later

    def __init_subclass__(cls, status: int | None = None) -> None:
        BY_STATUS[status] = cls

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


def status_error(
    document: object, status: int, request_id: str | None, headers: Mapping[str, str]
) -> StatusError:
    """The error that a response says; missing and invalid members get a default."""
    known = document if isinstance(document, dict) else {}
    texts = _texts(known)
    found = known.get("errors")
    members = found if isinstance(found, list) else []
    fields = [_texts(member) for member in members if isinstance(member, dict)]
    is_refused = headers.get("x-should-retry", "").strip().lower() == "false"
    kind = BY_STATUS.get(status) or (ServiceFailed if status > 500 else StatusError)
    # by position, so that it can be pickled
    return kind(
        status,
        texts.get("code", "unknown"),
        texts.get("detail") or http.responses.get(status, "an error without a description"),
        request_id or texts.get("request_id"),
        retry_after(headers),
        tuple(FieldError(each.get("field", ""), each.get("message", "")) for each in fields),
        status in _RETRIED and not is_refused,
    )


def _texts(document: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in document.items() if isinstance(value, str) and value}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; None if it is missing, invalid, or a date."""
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _with_id(text: str, request_id: str | None) -> str:
    return f"{text} (request {request_id})" if request_id else text
