"""Requests, responses and retries, without I/O and independent of the HTTP library."""

import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

from ign_client import _errors as errors
from ign_client._settings import DEFAULT_TIMEOUT_S, Settings, check_seconds

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

EVENTS: Final = "text/event-stream"
MAX_ANSWER_BYTES: Final = 1 << 30
EVENT_S: Final = 30.0  # between two events of a stream; the service sends its progress each second
# added to the timeout, so that the service's 504 at its deadline still arrives
GRACE_S: Final = 1.0


def complete(awaitable: Awaitable[T]) -> T:
    """The result of an awaitable that never waits for an event loop; raises RuntimeError if it
    does.
    """
    try:
        next(awaitable.__await__())
    except StopIteration as done:
        return cast(T, done.value)
    raise RuntimeError("this needs an event loop")


Body = Mapping[str, Any]
"""``content``, a JSON text; or of a form ``data``, the text of each option, and ``files``, pairs of
a name and (file name, content, media type). Empty for a GET.
"""


@dataclass(slots=True)
class Limit:
    """What the client waits for and takes at most: until the end of the attempt or the next event,
    and of the call.

    The times are those of ``clock``; they are infinite without a limit. ``names``: the options, for
    errors.
    """

    clock: Callable[[], float]
    call_ends: float
    names: str = ""
    ends: float = math.inf
    received: int = 0  # bytes

    def renew(self, seconds: float) -> None:
        self.ends = min(self.clock() + seconds, self.call_ends)

    def left(self) -> float | None:
        """Seconds that are left, None for any number; raises `TimeoutError` if there are none."""
        if (seconds := self.ends - self.clock()) <= 0:
            raise TimeoutError
        return None if seconds == math.inf else seconds

    def count(self, piece: bytes) -> bytes:
        """Count the next bytes of the response, and return them."""
        self.received += len(piece)
        if self.received > MAX_ANSWER_BYTES:
            raise errors.UnexpectedAnswer(f"a response of more than {MAX_ANSWER_BYTES} bytes")
        return piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, without what the transport adds: the URL of the service, User-Agent and
    Authorization.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    limit: Limit


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response, with headers whose names have any case.

    For an event stream, ``content`` is its first chunk, and ``rest`` the generator of the others.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    limit: Limit
    rest: AsyncGenerator[bytes, None] | None = None

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")

    @property
    def media_type(self) -> str:
        """The media type in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def error(self) -> errors.StatusError:
        """What an error response says, of the service or of a proxy."""
        try:
            document = json.loads(self.content)
        except (ValueError, RecursionError):
            document = None
        return errors.status_error(document, self.status, self.request_id, self.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T_co]):
    """One call of a method: the request, and the parser of a response with these statuses.

    ``connection``: the given ones of timeout, deadline and request_id. ``placed`` makes the raised
    error from that of the response.
    """

    path: str
    parse: Callable[[Response], T_co]
    body: Body
    connection: Mapping[str, Any]
    accept: str = "application/json"
    statuses: frozenset[int] = frozenset({200})
    placed: Callable[[errors.StatusError], errors.StatusError] = lambda error: error

    def __post_init__(self) -> None:
        for name in ("timeout", "deadline"):
            check_seconds(name, self.connection.get(name))
        request_id = self.connection.get("request_id", "x")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", request_id):
            raise errors.InputError(
                f"request_id: expected 1 to 128 of A-Z a-z 0-9 . _ -, not {request_id!r}"
            )

    def ends(self, settings: Settings) -> float:
        """When the call ends that begins now."""
        return settings.clock() + self._seconds("deadline", settings.deadline)

    def gives_up(self, settings: Settings, ends: float) -> float:
        """When the last attempt begins at the latest, of a call that begins now."""
        timeout = self._seconds("timeout", settings.timeout)
        budgets = (ends - settings.clock(), timeout, DEFAULT_TIMEOUT_S)
        return settings.clock() + next(seconds for seconds in budgets if seconds < math.inf)

    def request(self, settings: Settings, ends: float) -> Request:
        """The request of an attempt that begins now, in a call that ends at ``ends``."""
        given = {"timeout": settings.timeout, "deadline": settings.deadline, **self.connection}
        limit = Limit(
            settings.clock,
            ends,
            "timeout={timeout} of an attempt, deadline={deadline} of the call".format(**given),
        )
        timeout = min(self._seconds("timeout", settings.timeout), ends - settings.clock())
        limit.renew(timeout + GRACE_S)
        headers = {"Accept": self.accept, "Accept-Encoding": "identity"}
        if timeout < math.inf:
            # The service stops at the client's timeout, because nobody would read the response.
            headers["X-Request-Timeout"] = f"{max(timeout, 0.001):.3f}"
        if "request_id" in self.connection:
            headers["X-Request-ID"] = self.connection["request_id"]
        if "content" in self.body:
            headers["Content-Type"] = "application/json"
        method = "POST" if self.body else "GET"
        return Request(method=method, path=self.path, headers=headers, body=self.body, limit=limit)

    def _seconds(self, name: str, default: float | None) -> float:
        seconds: float | None = self.connection.get(name, default)
        return math.inf if seconds is None else seconds


def delay(settings: Settings, error: errors.IgnError, retries: int) -> float | None:
    """Seconds to wait before the next attempt, after so many retries; None to give up."""
    if retries == settings.max_retries or not error.retryable:
        return None
    own = 0.5 * 2.0 ** min(retries, 4) * (0.5 + 0.5 * settings.jitter())
    seconds = (error.retry_after if isinstance(error, errors.StatusError) else None) or 0.0
    # up to 10 % later than Retry-After says, never earlier
    return max(own, seconds * (1 + 0.1 * settings.jitter()))
