"""The endpoints that run a model: their routes, and the stages of those that have them."""

from typing import Any

from fastapi.routing import APIRoute

from service.api.native import routes as native
from service.api.native import stages as native_stages
from service.api.oip import routes as oip
from service.api.oip import stages as oip_stages
from service.api.plain_request import FastEndpoint, Stages


def fast_routes() -> list[APIRoute]:
    """The POST endpoints that run a model. They take the request alone, as `FastRouter` calls them."""
    routes = [route for route in (*native.router.routes, *oip.router.routes) if isinstance(route, APIRoute)]
    routes = [route for route in routes if route.methods == {"POST"}]
    return [route for route in routes if route in native.router.routes or route.endpoint is oip.infer]


def fast_endpoints() -> list[FastEndpoint]:
    """The endpoints whose small requests `FastPath` answers."""
    stages: dict[Any, tuple[Any, Stages]] = {
        oip.infer: (oip_stages.parse, oip_stages.STAGES),
        native.generate: (native_stages.parse_generate, native_stages.STAGES),
        native.project: (native_stages.parse_project, native_stages.STAGES),
    }
    return [
        FastEndpoint(route.path, route.path_regex.match, *stages[route.endpoint])
        for route in fast_routes()
        if route.endpoint in stages
    ]
