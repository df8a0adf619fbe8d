"""The table of endpoints. Routing, the checks of a head, parsing and `/openapi.json` come from it.

A dialect is a file that declares its endpoints: `service.api.native`, `service.api.oip`,
`service.api.openai` and `service.api.info`; `service.app` joins them.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from service.api.negotiation import Json, Media
from service.api.pipeline import Stages
from service.api.request import ApiRequest, Route

Handler = Callable[[ApiRequest], Awaitable[Any]]
"""Returns a response of Starlette, or what becomes JSON. Its docstring is the description of the
endpoint.
"""

# Each kind of parameter in a path, and what it stands for.
_KINDS: Final = {"": "[^/]+", ":path": ".*", ":text": ".+"}
_PARAMETER: Final = re.compile(r"\\{(\w+)(:\w+)?\\}")
_CACHED: Final = 256  # paths that are remembered, of at most 16 KiB each


Access = Literal["key", "admin", "health", "metrics", "docs", "page"]
"""Who may use an endpoint, if there are keys: who has one, who has one with the scope `admin`, or
everybody, unless `IGN_PRIVATE_ENDPOINTS` has the name.
"""


class Endpoint(NamedTuple):
    """One endpoint.

    ``path`` may have parameters: `{name}` is a segment, `{name:path}` any text, `{name:text}` at
    least a character. ``run`` is what answers: stages, if it runs a model. ``tag`` is its group in
    the document, which leaves out endpoints without one, and ``name`` that of its operation.
    ``request`` is the JSON of the body, ``bodies`` are media types besides it: if of
    images, these may also come in a form, with the options in it or in the query; ``answer`` is the
    JSON of the response, ``formats`` are its media types. ``parameters`` are those of the query and
    the headers, as in the document. ``text`` describes it, instead of the docstring of ``run``, or
    of its stage `parse`.
    """

    path: str
    run: Stages | Handler
    tag: str = ""
    name: str = ""
    methods: tuple[str, ...] = ("GET",)
    request: type[BaseModel] | None = None
    bodies: tuple[str, ...] = ()
    answer: Any = None
    formats: tuple[str, ...] = (Media.JSON,)
    parameters: tuple[Json, ...] = ()
    text: str = ""
    is_cached: bool = False
    """Whether caches may keep the response."""
    access: Access = "key"

    @property
    def template(self) -> str:
        """The path as in the document, in logs and in metrics."""
        return re.sub(r":\w+}", "}", self.path)

    @property
    def description(self) -> str:
        """What it does; the first line is the summary."""
        run = self.run.parse if isinstance(self.run, Stages) else self.run
        return self.text or inspect.getdoc(run) or ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the paths that belong to it."""
        pattern = _PARAMETER.sub(
            lambda match: f"(?P<{match[1]}>{_KINDS[match[2] or '']})", re.escape(self.path)
        )
        return re.compile(pattern, re.DOTALL)


def install(app: FastAPI, endpoints: Iterable[Endpoint]) -> None:
    """Let FastAPI's router answer those that run no model."""
    for endpoint in endpoints:
        if not isinstance(endpoint.run, Stages):
            app.add_route(endpoint.path, _responder(endpoint.run), [*endpoint.methods])


def _responder(run: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        answer = await run(request.state.request)
        if isinstance(answer, Response):
            return answer
        return Response(to_json(answer), media_type="application/json")

    return respond


class RouteTable:
    """Finds the endpoints of a path, for every request before it is admitted."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._routes: dict[re.Pattern[str], Route] = {}
        for endpoint in endpoints:
            access = endpoint.access
            known = self._routes.get(endpoint.pattern, Route()).endpoints
            self._routes[endpoint.pattern] = Route(
                endpoint.template,
                {**known, **dict.fromkeys(endpoint.methods, endpoint)},
                access=access,
                is_probe=access in ("health", "metrics"),
            )
        self.find = lru_cache(maxsize=_CACHED)(self._find)
        """The first route that matches a path, or one with the template `unmatched`."""

    def _find(self, path: str) -> Route:
        for pattern, route in self._routes.items():
            if match := pattern.fullmatch(path):
                return route._replace(parameters=match.groupdict())
        return Route()
