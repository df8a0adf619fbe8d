"""Fast routing for the endpoints that run a model; it skips the framework's routing and dependency resolution."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Route(Protocol):
    """The attributes of a FastAPI route that `FastRouter` uses."""

    @property
    def path(self) -> str:
        """The path template, such as `/v2/models/{name}/infer`."""
        ...

    @property
    def path_regex(self) -> re.Pattern[str]:
        """Matches a whole path; has a named group for each parameter."""
        ...

    @property
    def endpoint(self) -> Callable[[Request], Awaitable[Response]]:
        """The function that answers a request."""
        ...


class FastRouter:
    """Calls the endpoint of a POST request to one of its routes, and passes every other request on.

    It is the innermost middleware. `ErrorMiddleware` answers exceptions of its endpoints, as the framework does for
    its own routes.

    Args:
        app: the framework's routing.
        routes: POST routes; their path parameters are text.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[Route]) -> None:
        self._app = app
        post_routes = list(routes)
        self._exact = {route.path: route for route in post_routes if "{" not in route.path}
        self._parameterised = [(route.path_regex.match, route) for route in post_routes if "{" in route.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        parameters: dict[str, str] = {}
        route = self._exact.get(scope["path"])
        if route is None:
            for match, candidate in self._parameterised:
                if matched := match(scope["path"]):
                    route, parameters = candidate, matched.groupdict()
                    break
            else:
                await self._app(scope, receive, send)
                return
        # The access log, the metrics and the endpoints read these two, which the framework sets for its own routes.
        scope["route"], scope["path_params"] = route, parameters
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
