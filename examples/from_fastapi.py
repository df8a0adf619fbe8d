"""Another service that has its pictures cleaned: `uvicorn --app-dir examples from_fastapi:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from ign_client import AsyncClient, IgnError, InvalidContent


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient(timeout=5) as app.state.ign:  # one for all requests: it keeps its connections
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/clean")
async def clean(request: Request) -> Response:
    ign: AsyncClient = request.app.state.ign
    try:
        (image,) = await ign.project(await request.body())
    except InvalidContent as refusal:
        return Response(refusal.detail, 422)
    except IgnError as failure:
        return Response(str(failure), 503)
    return Response(image.bytes, media_type="image/png")
