"""The model repository extension of the Open Inference Protocol: list, load and unload models at run time.

If API keys are configured, loading and unloading need the scope `admin`, which `service.api.application` checks.
"""

import asyncio
import time
from typing import Final, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.app_state import AppState, app_state
from service.api.body import read_body
from service.api.oip import openapi
from service.api.oip.schemas import IndexEntry, IndexRequest, LoadRequest, UnloadRequest
from service.api.oip.tensors import parse
from service.domain.errors import DeadlineExceeded, ForbiddenError, NotSupported

router = APIRouter(tags=["Open Inference Protocol"])

Body = TypeVar("Body", bound=BaseModel)

_MAX_BYTES: Final = 1 << 16  # of a body, as received and decompressed; the longest useful one has about 50
_MAX_INLINE: Final = 1 << 10  # bytes; parsing so few takes less time than waking a thread of the codec pool


@router.post("/v2/repository/index", response_model=list[IndexEntry], **openapi.repository(IndexRequest, openapi.INDEX))
async def index(request: Request) -> Response:
    """List every version that serves or is in the model directory."""
    services = _app_state(request)
    options = await _read_body(request, services, IndexRequest)
    entries = [
        {"name": name, "version": version, "state": entry.state, "reason": entry.reason}
        for entry in await services.registry.index()
        for name, _, version in [entry.ref.partition("/")]
        if entry.state == "READY" or not options.ready
    ]
    return JSONResponse(entries)


@router.post("/v2/repository/models/{name}/load", **openapi.repository(LoadRequest, openapi.LOAD, changes=True))
async def load(request: Request, name: str) -> Response:
    """Load the new and the changed versions of a model from the model directory.

    The response is sent when all of them serve. Until then, and if one cannot be verified, the previous ones serve.
    """
    services = _app_state(request)
    await _read_body(request, services, LoadRequest)
    await services.registry.load(name)
    return JSONResponse({})


@router.post("/v2/repository/models/{name}/unload", **openapi.repository(UnloadRequest, openapi.UNLOAD, changes=True))
async def unload(request: Request, name: str) -> Response:
    """Unload every version of a model after its requests in flight; the default model cannot be unloaded."""
    services = _app_state(request)
    await _read_body(request, services, UnloadRequest)
    await services.registry.unload(name)
    return JSONResponse({})


def _app_state(request: Request) -> AppState:
    services = app_state(request)
    _refuse_other_sites(request, services)
    if services.settings.workers > 1:
        raise NotSupported("the model repository is that of one process, and this service has several (IGN_WORKERS)")
    services.require_serving()
    return services


def _refuse_other_sites(request: Request, services: AppState) -> None:
    """Refuse a browser's request from a page of another site, which browsers send without asking, unless keys protect.

    Raises:
        ForbiddenError: no keys are configured, and the page's origin is not in `IGN_CORS_ORIGINS`.
    """
    settings = services.settings
    if (
        settings.api_keys_file is None
        and request.headers.get("sec-fetch-site") == "cross-site"
        and request.headers.get("origin") not in settings.cors_origins
    ):
        raise ForbiddenError("pages of other sites may not use the model repository")


async def _read_body(request: Request, services: AppState, schema: type[Body]) -> Body:
    """The options of a repository call.

    Raises:
        TooLarge: the body has more than 64 KiB.
        DeadlineExceeded: no thread of the codec pool had time for a large body.
    """
    settings = services.settings
    arrival: float = request.state.arrival
    body = await read_body(
        request.headers,
        request.receive,
        max_bytes=_MAX_BYTES,
        deadline=arrival + settings.body_timeout_s,
    )

    def read() -> Body:
        return parse(body, schema)

    if len(body) <= _MAX_INLINE:
        return read()
    try:
        async with asyncio.timeout(arrival + settings.request_timeout_s - time.monotonic()):
            return await services.codec.run("decode", read)
    except TimeoutError as exc:
        raise DeadlineExceeded("the deadline passed") from exc
