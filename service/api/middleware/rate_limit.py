"""Rate limits: a caller that exceeds its rate gets 429 with a Retry-After header."""

import time
from collections.abc import Callable, Collection
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http.problems import send_problem
from service.api.middleware.auth import OPEN_PATHS, PathSet
from service.domain.errors import RateLimited
from service.domain.rate_limit import GCRA, Rate, RateLimiter

QUOTA: Final = "quota"
"""The name in the request's state under which `AuthMiddleware` puts the rate of the caller's API key."""


class RateLimitMiddleware:
    """Limits the rate of each caller.

    Every request to a path that is not open counts, whether it succeeds or fails. A request that this middleware
    rejects does not count.

    Args:
        app: the application behind it.
        rate: of callers whose API key has no quota; None for no limit.
        limiter: counts the requests; None for a count in this process alone.
        open_paths: paths that do not count; `…/*` covers every path below.
        clock: returns seconds; monotonic.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        rate: Rate | None,
        limiter: RateLimiter | None = None,
        open_paths: Collection[str] = OPEN_PATHS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._rate = rate
        self._open = PathSet(open_paths)
        self._clock = clock
        self._limiter = limiter or GCRA()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            state = scope["state"]
            rate: Rate | None = state.get(QUOTA) or self._rate
            if rate is not None:
                wait = self._limiter.wait(state["caller"], rate, self._clock())
                if wait:
                    await send_problem(scope, send, RateLimited(f"more than {rate}", retry_after=wait))
                    return
        await self._app(scope, receive, send)
