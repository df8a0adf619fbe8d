"""The endpoints that are called all day, without the framework's search for them."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Route(Protocol):
    """What `FastRouter` needs of a route of FastAPI's."""

    @property
    def path(self) -> str:
        """Its template."""
        ...

    @property
    def path_regex(self) -> re.Pattern[str]:
        """Matches its paths from the beginning to the end, with a group for each parameter."""
        ...

    @property
    def endpoint(self) -> Callable[[Request], Awaitable[Response]]:
        """Request → response."""
        ...


class FastRouter:
    """Hands a POST to one of these routes to its endpoint, and everything else on. Innermost middleware.

    What an endpoint raises becomes a problem further out, as what the framework's routes raise does.

    Args:
        app: the framework's routing.
        routes: of POST, with text as their parameters; noted in the scope as the framework would.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[Route]) -> None:
        self._app = app
        listed = list(routes)
        self._exact = {route.path: route for route in listed if "{" not in route.path}
        self._others = [(route.path_regex.match, route) for route in listed if "{" in route.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        direct = scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path")
        found = self._find(scope["path"]) if direct else None
        if found is None:
            await self._app(scope, receive, send)
            return
        route, scope["path_params"] = found
        scope["route"] = route
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    def _find(self, path: str) -> tuple[Route, dict[str, str]] | None:
        if path in self._exact:
            return self._exact[path], {}
        for match, route in self._others:
            if found := match(path):
                return route, found.groupdict()
        return None
