"""Plain FastAPI and a batcher of thirty lines: what one writes without a serving framework.

Settings: uvicorn with uvloop and httptools, no access log (https://www.uvicorn.org/settings/), one
worker process for each copy of the model (https://fastapi.tiangolo.com/deployment/server-workers/).
The batcher takes what waits, up to the largest batch, as soon as the model is free: for a plain
queue that is both the fastest and the shortest. PNGs are decoded and encoded in the model's thread,
so that the event loop stays free.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers import common

Waiting = tuple[bytes, asyncio.Future[bytes]]


async def batches(
    queue: asyncio.Queue[Waiting], function: common.Function, executor: Executor
) -> None:
    while True:
        batch = [await queue.get()]
        while not queue.empty() and len(batch) < common.setting("MAX_BATCH"):
            batch.append(queue.get_nowait())
        answers: Sequence[bytes | Exception]
        try:
            bodies = [body for body, _ in batch]
            answers = await asyncio.get_running_loop().run_in_executor(executor, function, bodies)
        except Exception as exc:
            answers = [exc] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():  # else its client disconnected
                future.set_result(answer) if isinstance(answer, bytes) else future.set_exception(
                    answer
                )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.queue = asyncio.Queue()
    task = asyncio.create_task(batches(app.state.queue, common.Function(), ThreadPoolExecutor(1)))
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> Response:
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    request.app.state.queue.put_nowait((await request.body(), future))
    return Response(await future, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.fastapi_server:app",
        port=common.setting("PORT"),
        workers=common.setting("PROCESSES"),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
