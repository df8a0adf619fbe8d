"""Routing for the endpoints that run a model, without the cost of the framework's routing."""

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
    """Calls the endpoint of a POST to one of its routes, and passes every other request on. The innermost middleware.

    `ErrorMiddleware` turns what an endpoint raises into a problem, as the framework does for its own routes.

    Args:
        app: the framework's routing.
        routes: of POST, with only text as parameters; set in the scope as the framework would.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[Route]) -> None:
        self._app = app
        listed = list(routes)
        self._exact = {route.path: route for route in listed if "{" not in route.path}
        self._parameterised = [(route.path_regex.match, route) for route in listed if "{" in route.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        parameters: dict[str, str] = {}
        route = self._exact.get(scope["path"])
        if route is None:
            for match, candidate in self._parameterised:
                if found := match(scope["path"]):
                    route, parameters = candidate, found.groupdict()
                    break
            else:
                await self._app(scope, receive, send)
                return
        scope["route"], scope["path_params"] = route, parameters
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
