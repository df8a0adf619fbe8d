"""The service's ASGI application around a few routes of a test."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI

from service.api import problems
from service.api.access import ApiKeys
from service.api.application import Application, RouteTable
from service.api.limits import InFlightRequests
from service.domain.accounts import UNLIMITED
from service.settings import Settings


def application(
    api: FastAPI,
    *,
    keys: ApiKeys | None = None,
    in_flight: InFlightRequests | None = None,
    observe: Callable[[str, int, Any], None] = lambda *_: None,
    **settings: Any,
) -> Application:
    """``observe`` gets endpoint, status and the (seconds, state) of requests that ended together."""
    problems.install(api)
    services = SimpleNamespace(
        settings=Settings(**settings),
        in_flight=in_flight or InFlightRequests(UNLIMITED, UNLIMITED),
        tracing=None,
        metrics=SimpleNamespace(requests=observe),
    )
    return Application(
        cast(Any, services), api, RouteTable(api.routes, (), services.settings.private_endpoints), keys=keys
    )
