"""Clean pages by ign-service from another FastAPI service: `uvicorn --app-dir examples
from_fastapi:app`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from ign_client import AsyncClient, IgnError, InvalidContent


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
        (image,) = await ign.project(await request.body(), model="scans")
    except InvalidContent as error:
        return Response(error.detail, 422)
    except IgnError as error:
        return Response(str(error), 503)
    return Response(image.bytes, media_type="image/png")
