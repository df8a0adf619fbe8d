"""How often a caller may ask: 429 beyond its rate, with the time after which it may ask again."""

import time
from collections.abc import Callable, Collection
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http.problems import send_problem
from service.api.middleware.auth import OPEN_PATHS, PathSet
from service.domain.errors import RateLimited
from service.domain.rate_limit import GCRA, Rate

QUOTA: Final = "quota"
"""Where the request's state holds the rate of the caller's own key, if it has one."""


class RateLimitMiddleware:
    """ASGI middleware: every request to a path that is not open counts, whatever comes of it, refused ones do not.

    Args:
        app: the application behind it.
        rate: for callers whose key names none; None: no limit.
        parts: among how many processes, which know nothing of each other's callers, every rate is divided.
        open_paths: paths that do not count; `…/*` stands for all below.
        clock: seconds; never goes back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        rate: Rate | None,
        parts: int = 1,
        open_paths: Collection[str] = OPEN_PATHS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._rate = rate
        self._parts = parts
        self._open = PathSet(open_paths)
        self._clock = clock
        self._gcra = GCRA()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            state = scope["state"]
            rate: Rate | None = state.get(QUOTA) or self._rate
            if rate is not None:
                wait = self._gcra.wait(state["caller"], rate.share(self._parts), self._clock())
                if wait:
                    await send_problem(scope, send, RateLimited(f"more than {rate}", retry_after=wait))
                    return
        await self._app(scope, receive, send)
