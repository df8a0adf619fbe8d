"""Rate limits: a caller that exceeds its rate gets 429 with a Retry-After header."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http.problems import send_problem
from service.api.middleware.auth import OPEN_PATHS, PathSet
from service.domain.errors import RateLimited
from service.domain.rate_limit import GCRA, Rate, RateLimiter

QUOTA: Final = "quota"
"""The name in the request's state under which `AuthMiddleware` puts the rate of the caller's API key."""


class CallerRates:
    """Counts the requests of each caller.

    Args:
        rate: of callers whose API key has no quota; None for no limit.
        limiter: counts the requests; None for a count in this process alone.
        clock: returns seconds; monotonic.
    """

    def __init__(
        self, rate: Rate | None, limiter: RateLimiter | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._limiter, self._clock = rate, limiter or GCRA(), clock

    def count(self, state: Mapping[str, Any]) -> None:
        """Count a request with this state.

        Raises:
            RateLimited: it is beyond the rate of its caller; then it does not count.
        """
        rate: Rate | None = state.get(QUOTA) or self._rate
        if rate is not None:
            wait = self._limiter.wait(state["caller"], rate, self._clock())
            if wait:
                raise RateLimited(f"more than {rate}", retry_after=wait)


class RateLimitMiddleware:
    """Limits the rate of each caller.

    Every request to a path that is not open counts, whether it succeeds or fails. A request that this middleware
    rejects does not count.

    Args:
        app: the application behind it.
        rates: counts the requests.
        open_paths: paths that do not count; `…/*` covers every path below.
    """

    def __init__(self, app: ASGIApp, *, rates: CallerRates, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self._app = app
        self._rates = rates
        self._open = PathSet(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                self._rates.count(scope["state"])
            except RateLimited as exc:
                await send_problem(scope, send, exc)
                return
        await self._app(scope, receive, send)
