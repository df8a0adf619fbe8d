"""Requests, responses and retries, without I/O and independent of the HTTP library.

The generator `attempts` yields the next request. The client that drives it waits, sends the request, and passes in
the response or the `TransportError` with `send`.
"""

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from ign_client import _errors as errors
from ign_client._options import UNSET, Unset
from ign_client._settings import Settings, check_timeout

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

EVENTS: Final = "text/event-stream"
RETRIED: Final = frozenset({408, 429, 502, 503, 504})
_MAX_RETRY_AFTER_S: Final = 60.0  # a longer Retry-After raises the error instead of blocking the caller


class MultipartBody(NamedTuple):
    """A form: the text of each option, and (name, content) of each file, in order; names may repeat."""

    fields: Mapping[str, str]
    files: Sequence[tuple[str, bytes]]


Body: TypeAlias = bytes | MultipartBody
"""JSON text, or a multipart form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, without what the transport adds: the URL of the service, User-Agent and Authorization."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body | None
    timeout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP response, with the names of its headers in lower case.

    For an event stream, ``content`` is its first chunk, ``rest`` the generator of the others, and ``cut`` ends a wait
    for the next one from another thread or task.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    rest: Any = None
    cut: Callable[[], None] = lambda: None

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")

    @property
    def media_type(self) -> str:
        """The media type in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def problem(self, now: float) -> errors.Problem:
        """What an error response says, of the service or of a proxy; ``now``: seconds since the epoch."""
        try:
            document = json.loads(self.content)
        except ValueError:
            document = None
        known = document if isinstance(document, dict) else {}
        return errors.problem_from(known, self.status, self.request_id, errors.retry_after(self.headers, now))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T_co]):
    """One call of a method: the request, without a body for a GET, and the parser of a response with these statuses.

    ``error`` makes the raised error from that of the response.
    """

    path: str
    parse: Callable[[Response], T_co]
    body: Body | None = None
    accept: str = "application/json"
    timeout: float | Unset | None = UNSET
    request_id: str | None = None
    statuses: frozenset[int] = frozenset({200})
    error: Callable[[errors.StatusError], errors.StatusError] = lambda error: error

    def __post_init__(self) -> None:
        if not isinstance(self.timeout, Unset):
            check_timeout(self.timeout)
        if self.request_id is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", self.request_id):
            raise errors.InputError(f"request_id: expected 1 to 128 of A-Z a-z 0-9 . _ -, not {self.request_id!r}")

    def request(self, default_timeout: float | None) -> Request:
        """The request, which is the same for every attempt."""
        timeout = default_timeout if isinstance(self.timeout, Unset) else self.timeout
        headers = {"Accept": self.accept}
        if timeout is not None:
            # The service stops at the client's timeout, because nobody would read the response.
            headers["X-Request-Timeout"] = f"{max(timeout, 0.001):.3f}"
        if self.request_id is not None:
            headers["X-Request-ID"] = self.request_id
        if isinstance(self.body, bytes):
            headers["Content-Type"] = "application/json"
        method = "GET" if self.body is None else "POST"
        return Request(method=method, path=self.path, headers=headers, body=self.body, timeout=timeout)


def attempts(call: Call[T], settings: Settings) -> Generator[tuple[Request, float], Any, T]:
    """Yield requests, each with the seconds to wait before it, until one succeeds; return the parsed response.

    Every call may be repeated, because the service keeps no state for callers.

    Raises:
        errors.TransportError, errors.StatusError: the error of the last attempt.
        errors.UnexpectedAnswer: the response cannot be parsed.
    """
    request = call.request(settings.timeout)
    delay, retries = 0.0, 0
    while True:
        outcome: Response | errors.TransportError = yield request, delay
        response = outcome if isinstance(outcome, Response) else None
        if response is not None and response.status in call.statuses:
            return _parse(call, response)
        if (next_delay := _delay(settings, response, retries)) is None:
            if isinstance(outcome, errors.TransportError):
                raise outcome
            raise call.error(errors.status_error(outcome.problem(settings.clock())))
        delay, retries = next_delay, retries + 1


def _delay(settings: Settings, response: Response | None, retries: int) -> float | None:
    """Seconds to wait before the next attempt, after so many retries; None to give up."""
    if retries >= settings.max_retries:
        return None
    seconds = None
    if response is not None:
        if response.status not in RETRIED or response.headers.get("x-should-retry", "").strip().lower() == "false":
            return None
        seconds = errors.retry_after(response.headers, settings.clock())
    if seconds is None:
        return min(0.5 * 2.0**retries, 8.0) * (0.5 + 0.5 * settings.jitter())
    # Up to 10 % later than Retry-After says, never earlier.
    return seconds * (1 + 0.1 * settings.jitter()) if seconds <= _MAX_RETRY_AFTER_S else None


def _parse(call: Call[T], response: Response) -> T:
    try:
        return call.parse(response)
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        detail = f"{call.path} answered with something that is not its answer ({type(exc).__name__}: {exc})"
        raise errors.UnexpectedAnswer(detail, response.request_id) from exc
