"""What happens between a call and its answer, without I/O: attempts, waits, errors.

`attempts` is a generator. It yields the next `Attempt`; whoever drives it waits, sends, and hands the response in, or
throws in the `TransportError` that came instead. The blocking and the asynchronous client drive the same one.
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
_MAX_RETRY_AFTER_S: Final = 60.0  # asked for more, the caller is told instead of being left asleep


@dataclass(frozen=True, slots=True)
class Attempt:
    """What to do next.

    Args:
        request: to be sent,
        wait_s: after this many seconds.
    """

    request: Request
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Whether to try again, and when. Every call is safe to repeat: the service keeps no state for callers.

    Args:
        most: attempts beyond the first, ≥ 0.
        jitter: uniform numbers in [0, 1), so that callers who failed together do not come back together.
        clock: seconds since the epoch.
    """

    most: int = 2
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if self.most < 0:
            raise InputError(f"max_retries: expected 0 or more, not {self.most}")

    def delay_after_failure(self, spent: int) -> float | None:
        """Seconds to wait when nobody answered, or None to give up; ``spent`` retries are behind us."""
        return self._backoff(spent) if spent < self.most else None

    def after(self, response: Response, spent: int) -> float | None:
        """The same when the answer is an error."""
        if spent >= self.most or response.status not in RETRIED:
            return None
        if response.headers.get("x-should-retry", "").strip().lower() == "false":
            return None
        asked = retry_after(response, self.clock())
        if asked is None:
            return self._backoff(spent)
        # A little later than asked, never earlier.
        return asked * (1 + 0.1 * self.jitter()) if asked <= _MAX_RETRY_AFTER_S else None

    def _backoff(self, spent: int) -> float:
        return min(_FIRST_DELAY_S * 2.0**spent, _MAX_DELAY_S) * (0.5 + 0.5 * self.jitter())


def attempts(call: Call[T], timeout: float | None, retry: Retry) -> Generator[Attempt, Response, T]:
    """From a call to its answer.

    Raises:
        TransportError, StatusError: as the last attempt ended.
        UnexpectedAnswer: the answer cannot be read.
    """
    request = call.request(timeout)
    wait, spent = 0.0, 0
    while True:
        try:
            response = yield Attempt(request, wait)
        except TransportError:
            if (next_wait := retry.delay_after_failure(spent)) is None:
                raise
        else:
            if response.status in call.statuses:
                return _parsed(call, response)
            if (next_wait := retry.after(response, spent)) is None:
                raise status_error(problem_of(response, retry.clock()))
        wait, spent = next_wait, spent + 1


def _parsed(call: Call[T], response: Response) -> T:
    try:
        return call.parse(response)
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        detail = f"{call.path} answered with something that is not its answer ({type(exc).__name__}: {exc})"
        raise UnexpectedAnswer(detail, response.request_id) from exc
