"""The endpoints that run a model: their routes, and the stages of those that have them."""

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.api.http.disconnect import until_disconnect
from service.api.http.request_context import ApiRequest
from service.api.native import routes as native
from service.api.native import stages as native_stages
from service.api.oip import endpoints as oip
from service.api.plain_request import FastEndpoint, Stages
from service.domain.errors import IgnError


class FastRoute(NamedTuple):
    """A route whose endpoint takes the request alone."""

    path: str
    path_regex: re.Pattern[str]
    path_format: str
    endpoint: Callable[[Request], Awaitable[Response]]


async def serve_infer(request: Request) -> Response:
    """The stages of one inference."""
    api = ApiRequest.of(request)
    body = await api.read_body()
    work = await api.parse(body, partial(oip.parse, api, body, request.path_params))
    api.state["rows"], api.state["steps"] = work.count, work.steps

    async def serve() -> Response:
        run = api.services.codec.run
        (inputs,) = await run("decode", partial(oip.decode, [work])) if work.is_large_decode else oip.decode([work])
        if isinstance(inputs, Exception):
            raise inputs
        try:
            result = await work.model.scheduler.submit(inputs.rows, work.scheduling(inputs))
        except Exception as exc:
            raise (work.error(exc) if isinstance(exc, IgnError) else exc) from exc
        done = [(work, inputs.rows, result)]
        ((headers, content, kind),) = (
            await run("encode", partial(oip.respond, done)) if work.is_large else oip.respond(done)
        )
        content = content if isinstance(content, bytes) else b"".join(content)
        return Response(content, headers=headers, media_type=kind)

    return await until_disconnect(api.receive, serve())


def fast_routes() -> list[FastRoute]:
    """The POST endpoints that run a model."""
    handlers: dict[Any, Any] = native.HANDLERS | {oip.infer: serve_infer}
    return [
        FastRoute(route.path, route.path_regex, route.path_format, handlers[route.endpoint])
        for route in (*native.router.routes, *oip.router.routes)
        if isinstance(route, APIRoute) and route.endpoint in handlers
    ]


def respond_infer(ended: Sequence[Any]) -> list[tuple[dict[str, str], bytes, str]]:
    """The responses, whole."""
    return [
        (headers, body if isinstance(body, bytes) else b"".join(body), kind)
        for headers, body, kind in oip.respond(ended)
    ]


def fast_endpoints() -> list[FastEndpoint]:
    """The endpoints whose small requests `FastPath` answers."""
    stages: dict[Any, tuple[Any, Stages]] = {
        serve_infer: (oip.parse, Stages(oip.decode, respond_infer)),
        native.HANDLERS[native.generate]: (native_stages.parse_generate, native_stages.STAGES),
        native.HANDLERS[native.project]: (native_stages.parse_project, native_stages.STAGES),
    }
    return [
        FastEndpoint(route.path, route.path_regex.match, *stages[route.endpoint])
        for route in fast_routes()
        if route.endpoint in stages
    ]
