"""The model repository extension of the Open Inference Protocol: list, load and unload models at run time.

If API keys are configured, loading and unloading need the scope `admin`, which `service.api.access` checks.
"""

import asyncio
import time
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Depends
from starlette.requests import Request

from service.api.app_state import AppState, app_state
from service.api.oip.endpoints import ServingState
from service.api.oip.tensors import IndexEntry, IndexRequest, LoadRequest, Schema, UnloadRequest, parse
from service.api.request import RequestHeaders, read_body
from service.domain.errors import DeadlineExceeded, ForbiddenError, NotSupported

_MAX_BYTES: Final = 1 << 16  # of a body; the longest useful one has about 50
_MAX_INLINE: Final = 1 << 10  # bytes; parsing so few takes less time than waking a thread of the codec pool


async def _check_allowed(request: Request) -> None:
    settings, headers = app_state(request).settings, request.headers
    # A browser sends such a request for a page of any site without asking.
    cross_site = headers.get("sec-fetch-site") == "cross-site" and headers.get("origin") not in settings.cors_origins
    if cross_site and settings.api_keys_file is None:
        raise ForbiddenError("pages of other sites may not use the model repository")
    if settings.workers > 1:
        raise NotSupported("the model repository is that of one process, and this service has several (IGN_WORKERS)")


router = APIRouter(tags=["Open Inference Protocol"], dependencies=[Depends(_check_allowed)])


@router.post("/v2/repository/index")
async def index(request: Request, services: ServingState) -> list[IndexEntry]:
    """List every version that serves or is in the model directory."""
    options = await _read(request, services, IndexRequest)
    return [
        IndexEntry(name=name, version=version, state=entry.state, reason=entry.reason)
        for entry in await services.registry.index()
        for name, _, version in [entry.ref.partition("/")]
        if entry.state == "READY" or not options.ready
    ]


@router.post("/v2/repository/models/{name}/load")
async def load(request: Request, services: ServingState, name: str) -> Any:
    """Load a model, or its new and changed versions, from the model directory.

    The response is sent when all of them serve. Until then, and if one cannot be verified, the previous ones serve.
    """
    await _read(request, services, LoadRequest)
    await services.registry.load(name)
    return {}


@router.post("/v2/repository/models/{name}/unload")
async def unload(request: Request, services: ServingState, name: str) -> Any:
    """Unload every version of a model after its requests in flight; the default model cannot be unloaded."""
    await _read(request, services, UnloadRequest)
    await services.registry.unload(name)
    return {}


async def _read(request: Request, services: AppState, schema: type[Schema]) -> Schema:
    """The body of a call, whatever its Content-Type. FastAPI would read one of any size, and want application/json."""
    settings, arrival = services.settings, request.state.arrival
    deadline = arrival + settings.body_timeout_s
    body = await read_body(
        RequestHeaders(request.scope["headers"]), request.receive, max_bytes=_MAX_BYTES, deadline=deadline
    )
    if len(body) <= _MAX_INLINE:
        return parse(body, schema)
    try:
        async with asyncio.timeout(arrival + settings.request_timeout_s - time.monotonic()):
            return await services.codec.run("decode", partial(parse, body, schema))
    except TimeoutError as exc:
        raise DeadlineExceeded("the deadline passed") from exc
