"""Clean pages by ign-service from another FastAPI service: `uvicorn --app-dir examples
from_fastapi:app`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from ign_client import AsyncClient, IgnError, InputError, StatusError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient(
        deadline=60
    ) as app.state.ign:  # one client for all requests reuses its connections
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/clean")
async def clean(request: Request) -> Response:
    ign: AsyncClient = request.app.state.ign
    try:
        pages = await ign.project(await request.body(), model="scans")
    except InputError as error:
        return Response(str(error), 422)
    except StatusError as error:
        return Response(error.detail, 503 if error.retryable else error.status)
    except IgnError as error:
        return Response(str(error), 503)
    if len(pages) > 1:
        return Response("send one page at a time", 422)
    return Response(pages[0].bytes, media_type="image/png")
