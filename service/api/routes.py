"""Finds the endpoint of a path."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from service.api.pipeline import Endpoint

UNMATCHED: Final = "unmatched"
_CACHED, _MAX_PATH = 1024, 256  # how many paths are remembered, and the longest of them


class Match(NamedTuple):
    """What a path belongs to: a template for logs and metrics, and the endpoint if its POST runs a model."""

    template: str
    endpoint: Endpoint | None = None
    parameters: Mapping[str, str] = {}


class RouteTable:
    """Finds the template of a path and its endpoint, for every request before it is admitted.

    Args:
        routes: of FastAPI or Starlette, in their order; anything without a template, such as a mount, is left out.
        endpoints: those that run a model.
    """

    def __init__(self, routes: Iterable[Any], endpoints: Iterable[Endpoint]) -> None:
        models = {endpoint.template: endpoint for endpoint in endpoints}
        templates = {route.path_format: route.path_regex for route in routes if hasattr(route, "path_format")}
        self._exact = {path: Match(path, models.get(path)) for path in templates if "{" not in path}
        self._patterns = [(regex, path, models.get(path)) for path, regex in templates.items() if "{" in path]
        self._find_cached = lru_cache(maxsize=_CACHED)(self._find)

    def find(self, path: str) -> Match:
        """The first route that matches, or one with the template `unmatched`."""
        return self._find_cached(path) if len(path) <= _MAX_PATH else self._find(path)

    def _find(self, path: str) -> Match:
        if path in self._exact:
            return self._exact[path]
        for regex, template, endpoint in self._patterns:
            match = regex.match(path)
            if match is not None:
                return Match(template, endpoint, match.groupdict())
        return Match(UNMATCHED)
