"""The stream of server-sent events of a request."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import Send

from service.api.message import compact_json
from service.api.negotiation import Json, Media
from service.api.problems import problem_body
from service.api.request import ApiRequest, RawHeaders, raw_headers
from service.domain.errors import DeadlineExceeded, forget_frames
from service.domain.tasks import Result, StepOutput, StreamProgress

Event = StepOutput | StreamProgress | Result | Exception
"""What a stream gets; a result or an exception is the last."""
Events = asyncio.Queue[Event]
Encode = Callable[[StepOutput | StreamProgress | Result], Awaitable[bytes]]

# seconds without an event; a comment line then makes proxies keep the connection open
_KEEPALIVE_S: Final = 10.0
_HEADERS: Final = raw_headers(
    {
        "Content-Type": f"{Media.EVENTS}; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
)


async def send_events(
    api: ApiRequest, headers: RawHeaders, encode: Encode, events: Events, send: Send
) -> bytes:
    """Send what ``encode`` makes of the events of a request until its result; returns the last
    piece, to be sent once no row runs.

    A failure before the first event becomes an ordinary problem document with its own status. A
    later failure becomes the event `error`, because status 200 is sent already.
    """
    first = await events.get()
    if isinstance(first, Exception):
        raise first
    api.deadline = api.stream_deadline
    headers += _HEADERS
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async with asyncio.timeout(api.deadline - api.services.clock()):
            await _send_each(encode, first, events, send)
    except TimeoutError:
        return _error_event(
            api, DeadlineExceeded("the stream took longer than IGN_STREAM_TIMEOUT_S allows")
        )
    except Exception as exc:
        return _error_event(api, exc)
    return b""


async def _send_each(encode: Encode, first: Event, events: Events, send: Send) -> None:
    item: Event | None = first
    while True:
        if isinstance(item, Exception):
            raise item
        text = b": still here\n\n" if item is None else await encode(item)
        if text:
            await send({"type": "http.response.body", "body": text, "more_body": True})
        if isinstance(item, Result):
            return
        try:
            async with asyncio.timeout(_KEEPALIVE_S):
                item = await events.get()
        except TimeoutError:
            item = None


def _error_event(api: ApiRequest, exc: Exception) -> bytes:
    error = api.describe(exc)
    forget_frames(exc)
    return event("error", problem_body(error, api.request_id, api.path))


def event(name: str, members: Json) -> bytes:
    """Encode one server-sent event with JSON data."""
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), compact_json(members))
