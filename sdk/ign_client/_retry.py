"""Retries, without I/O.

The generator `attempts` yields the next `Attempt`. The client that drives it waits, sends the request, and passes in
the response with `send` or the `TransportError` with `throw`. Both clients drive the same generator, so that the rules
exist once.
"""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, TypeVar

from ign_client._errors import InputError, TransportError, UnexpectedAnswer, status_error
from ign_client._problems import problem_of, retry_after
from ign_client._wire import Call, Request, Response

T = TypeVar("T")

RETRIED: Final = frozenset({408, 429, 502, 503, 504})
_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 8.0
_MAX_RETRY_AFTER_S: Final = 60.0  # a longer Retry-After raises the error instead of blocking the caller


@dataclass(frozen=True, slots=True)
class Attempt:
    """The next attempt.

    Args:
        request: the request to send.
        delay_s: seconds to wait before.
    """

    request: Request
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Decides whether and when to retry. Every call may be repeated, because the service keeps no state for callers.

    Args:
        max_retries: attempts after the first one, ≥ 0.
        jitter: returns uniform random numbers in [0, 1), so that clients that failed together do not retry together.
        clock: returns seconds since the epoch.
    """

    max_retries: int = 2
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        try:
            valid = self.max_retries >= 0
        except TypeError:  # of a caller without type checks
            valid = False
        if not valid:
            raise InputError(f"max_retries: expected 0 or more, not {self.max_retries!r}")

    def delay_after_failure(self, retries: int) -> float | None:
        """Seconds to wait after an attempt without response; None to give up. ``retries``: number of retries so far."""
        return self._backoff(retries) if retries < self.max_retries else None

    def delay_after_error(self, response: Response, retries: int) -> float | None:
        """Seconds to wait after an error response; None to give up. ``retries``: number of retries so far."""
        if retries >= self.max_retries or response.status not in RETRIED:
            return None
        if response.headers.get("x-should-retry", "").strip().lower() == "false":
            return None
        seconds = retry_after(response, self.clock())
        if seconds is None:
            return self._backoff(retries)
        # Up to 10 % later than Retry-After says, never earlier.
        return seconds * (1 + 0.1 * self.jitter()) if seconds <= _MAX_RETRY_AFTER_S else None

    def _backoff(self, retries: int) -> float:
        return min(_FIRST_DELAY_S * 2.0**retries, _MAX_DELAY_S) * (0.5 + 0.5 * self.jitter())


def attempts(call: Call[T], timeout: float | None, retry: Retry) -> Generator[Attempt, Response, T]:
    """Yield attempts until one succeeds; the return value is the parsed response.

    Raises:
        TransportError, StatusError: the error of the last attempt.
        UnexpectedAnswer: the response cannot be parsed.
    """
    request = call.request(timeout)
    delay, retries = 0.0, 0
    while True:
        try:
            response = yield Attempt(request, delay)
        except TransportError:
            if (next_delay := retry.delay_after_failure(retries)) is None:
                raise
        else:
            if response.status in call.statuses:
                return _parse(call, response)
            if (next_delay := retry.delay_after_error(response, retries)) is None:
                raise status_error(problem_of(response, retry.clock()))
        delay, retries = next_delay, retries + 1


def _parse(call: Call[T], response: Response) -> T:
    try:
        return call.parse(response)
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        detail = f"{call.path} answered with something that is not its answer ({type(exc).__name__}: {exc})"
        raise UnexpectedAnswer(detail, response.request_id) from exc
