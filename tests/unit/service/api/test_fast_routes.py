import asyncio
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.api.middleware.fast_routes import FastRouter

ROUTER = APIRouter()


@ROUTER.post("/project")
@ROUTER.post("/v2/models/{name}/infer")
@ROUTER.post("/v2/models/{name}/versions/{version}/infer")
async def endpoint(request: Request) -> Response:
    return JSONResponse([request.scope["route"].path, request.path_params])


ROUTES = [route for route in ROUTER.routes if isinstance(route, APIRoute)]


async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse("elsewhere")(scope, receive, send)


def answer(method: str, path: str, root_path: str = "") -> Any:
    async def main() -> Any:
        transport = httpx.ASGITransport(FastRouter(elsewhere, routes=ROUTES), root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.request(method, path)).json()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "template", "parameters"),
    [
        ("/project", "/project", {}),
        ("/v2/models/mnist/infer", "/v2/models/{name}/infer", {"name": "mnist"}),
        ("/v2/models/a%20b/infer", "/v2/models/{name}/infer", {"name": "a b"}),
        (
            "/v2/models/mnist/versions/1/infer",
            "/v2/models/{name}/versions/{version}/infer",
            {"name": "mnist", "version": "1"},
        ),
    ],
)
def test_a_post_skips_the_frameworks_search(path: str, template: str, parameters: dict[str, str]) -> None:
    assert answer("POST", path) == [template, parameters]


@pytest.mark.parametrize(
    ("method", "path", "root_path"),
    [
        ("GET", "/project", ""),  # the framework knows what to say
        ("POST", "/project/", ""),
        ("POST", "/projects", ""),
        ("POST", "/v2/models/mnist/infer/", ""),
        ("POST", "/v2/models/a/b/infer", ""),
        ("POST", "/v2/models/mnist", ""),
        ("POST", "/project", "/project"),  # mounted there, this is not its path
    ],
)
def test_everything_else_goes_on(method: str, path: str, root_path: str) -> None:
    assert answer(method, path, root_path) == "elsewhere"
