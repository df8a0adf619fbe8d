"""The name of the endpoint that a path belongs to, for requests that are refused before they are routed."""

import re
from collections.abc import Iterable
from typing import Any, Final

UNMATCHED: Final = "unmatched"


class EndpointNames:
    """Finds the template of a path among routes."""

    def __init__(self) -> None:
        self._exact: dict[str, str] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []

    def add(self, routes: Iterable[Any]) -> None:
        """Add routes of FastAPI or Starlette; anything else, such as a mount or an included router, is left out."""
        for route in routes:
            template = getattr(route, "path_format", None)
            if template is None:
                continue
            if "{" in template:
                self._patterns.append((route.path_regex, template))
            else:
                self._exact[template] = template

    def find(self, path: str) -> str:
        """The template of the first route that matches, or `unmatched`."""
        found = self._exact.get(path)
        if found is not None:
            return found
        return next((template for pattern, template in self._patterns if pattern.match(path)), UNMATCHED)
