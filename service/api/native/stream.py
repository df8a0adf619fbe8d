"""Server-sent events: each recorded step as soon as it is computed, the progress, and the final
response.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Send

from service.api.native.responses import (
    INLINE_VALUES,
    ResponseSpec,
    envelope,
    image,
    picture,
    round_change,
)
from service.api.negotiation import Json, Media
from service.api.problems import describe, log_failure
from service.api.request import ApiRequest, count_codec, count_rows, raw_headers
from service.domain.errors import DeadlineExceeded, forget_frames
from service.domain.tasks import Images, Result, StepOutput, StreamProgress, blend_step, colour_step

# seconds without an event; a comment line then makes proxies keep the connection open
_KEEPALIVE_S: Final = 10.0

_HEADERS: Final = raw_headers(
    {
        "Content-Type": f"{Media.EVENTS}; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
)

Event = StepOutput | StreamProgress | Result | Exception
Events = asyncio.Queue[Event]
Encode = Callable[[Any], Awaitable[bytes]]


async def send_events(spec: ResponseSpec, events: Events, send: Send, encode: Encode) -> bytes:
    """Send the events of a request until its result; returns the last piece, to be sent once no row
    runs.

    A failure before the first event becomes an ordinary problem document with its own status. A
    later failure becomes the event `error`, because status 200 is sent already. Nothing is sent for
    what ``encode`` makes no bytes of.
    """
    api = spec.api
    first = await events.get()
    if isinstance(first, Exception):
        raise first
    api.deadline = api.stream_deadline
    headers = [*api.response_headers(spec.model, spec.members.get("seed")), *_HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async with (
            asyncio.timeout(api.deadline - api.services.clock()),
            aclosing(_texts(first, events, encode)) as texts,
        ):
            async for text in texts:
                await send({"type": "http.response.body", "body": text, "more_body": True})
    except TimeoutError:
        return _error_event(
            api, DeadlineExceeded("the stream took longer than IGN_STREAM_TIMEOUT_S allows")
        )
    except Exception as exc:
        return _error_event(api, exc)
    return b""


async def _texts(first: Event, events: Events, encode: Encode) -> AsyncGenerator[bytes, None]:
    item: Event | None = first
    while True:
        if item is None:
            yield b": still here\n\n"
        elif isinstance(item, Exception):
            raise item
        elif text := await encode(item):
            yield text
        if isinstance(item, Result):
            return
        try:
            async with asyncio.timeout(_KEEPALIVE_S):
                item = await events.get()
        except TimeoutError:
            item = None


async def encode_event(
    spec: ResponseSpec, rows: Images, item: StepOutput | StreamProgress | Result
) -> bytes:
    """The event for what the scheduler delivers; ``rows`` are the inputs of f."""
    if isinstance(item, StreamProgress):
        members = {
            "steps_done": item.steps_done,
            "steps": item.steps,
            "rows_done": item.rows_done,
            "rows": item.rows,
        }
        return event("progress", members)
    if isinstance(item, StepOutput):
        return event("step", await step_members(spec, rows, item))
    count_rows([(spec.api, spec.model, item)])
    images = [image(spec, item, index, None) for index in range(len(item.rows))]
    return event("done", envelope(spec, images))


async def step_members(spec: ResponseSpec, rows: Images, step: StepOutput) -> Json:
    """The members of the event `step`; ``rows`` are the inputs of f."""
    step = colour_step(blend_step(rows, step, spec.strength), spec.chroma)
    options = spec.options

    def encode() -> str:
        return picture(step.row, spec.model.card, options)

    if step.row.size * options.scale**2 > INLINE_VALUES:
        data = await spec.api.run_codec("encode", lambda _: encode())
    else:
        start = time.perf_counter()
        data = encode()
        count_codec("encode", [spec.api], start)
    return {
        "index": spec.labels[step.index]["index"],
        "step": step.step,
        "data": data,
        "format": options.format,
        "change": round_change(step),
    }


def _error_event(api: ApiRequest, exc: Exception) -> bytes:
    problem = describe(exc)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log_failure(exc, api.request_id)
    api.problem = problem.code
    forget_frames(exc)
    return event("error", problem.body(api.request_id, api.endpoint))


def event(name: str, members: Json) -> bytes:
    """Encode one server-sent event with JSON data."""
    return f"event: {name}\ndata: {json.dumps(members, separators=(',', ':'))}\n\n".encode("ascii")
