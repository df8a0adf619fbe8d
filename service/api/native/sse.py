"""`text/event-stream`: recorded steps as they come to exist, progress, and the answer at the end."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.http.disconnect import until_disconnect
from service.api.http.negotiation import Media
from service.api.http.problems import describe, log_failure
from service.api.http.request_context import ApiRequest
from service.api.native.responses import ResponseSpec, envelope, image, picture, rounded
from service.domain.errors import DeadlineExceeded
from service.domain.tasks import Result, StepOutput, StreamProgress
from service.models.engine import Batch

_SILENCE_S: Final = 10.0  # after so long without an event, a comment line keeps proxies from hanging up

Events = AsyncGenerator[StepOutput | StreamProgress | Result, None]


class EventStream(Response):
    """Sends what `events` yields. A failure after the start is an event `error`, one before it an ordinary problem.

    Args:
        exchange: the request.
        shape: of the pictures.
        batch: what to run.
    """

    def __init__(self, exchange: ApiRequest, shape: ResponseSpec, batch: Batch) -> None:
        super().__init__(
            media_type=Media.EVENTS, headers=exchange.response_headers(shape.model, shape.members.get("seed"))
        )
        self._exchange, self._shape, self._batch = exchange, shape, batch
        for name, value in (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")):
            self.headers[name] = value
        del self.headers["content-length"], self.headers["server-timing"]  # neither is known yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run to the end, or until the client leaves."""
        await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        exchange = self._exchange
        last = b""
        async with aclosing(exchange.services.engine.stream(self._shape.model, self._batch, exchange.call)) as events:
            # Until the first event exists the answer can still be a problem with a status of its own.
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with asyncio.timeout(self._seconds_left()), aclosing(self._texts(first, events)) as texts:
                    async for text in texts:
                        await send({"type": "http.response.body", "body": text, "more_body": True})
            except TimeoutError:
                last = self._failure(DeadlineExceeded("the stream took longer than IGN_STREAM_TIMEOUT_S allows"))
            except Exception as exc:
                last = self._failure(exc)
        # Only now: the rows are given up before a caller who no longer reads is waited for.
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _failure(self, exc: Exception) -> bytes:
        request_id = self._exchange.request_id
        found = describe(exc)
        if found.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log_failure(exc, request_id)
        self._exchange.request.state.problem = found.code
        return event("error", found.body(request_id))

    def _seconds_left(self) -> float:
        end = self._exchange.arrival + self._exchange.services.settings.stream_timeout_s
        return end - time.monotonic()

    async def _texts(self, first: StepOutput | StreamProgress | Result, events: Events) -> AsyncGenerator[bytes, None]:
        yield await self._text(first)
        async with aclosing(_with_silence(events)) as items:
            async for item in items:
                yield b": still here\n\n" if item is None else await self._text(item)

    async def _text(self, item: StepOutput | StreamProgress | Result) -> bytes:
        if isinstance(item, StreamProgress):
            members = {"steps_done": item.steps_done, "steps": item.steps, "rows_done": item.rows_done}
            return event("progress", members | {"rows": item.rows})
        if isinstance(item, StepOutput):
            return event("step", await self._step(item))
        exchange, shape = self._exchange, self._shape
        exchange.count_rows(shape.model, item)
        images = [image(shape, item, place, None) for place in range(len(item.rows))]
        return event("done", envelope(exchange, shape.model, images, shape.members))

    async def _step(self, step: StepOutput) -> dict[str, Any]:
        shape = self._shape
        data = await self._exchange.encode(
            lambda: picture(step.row, shape.model.card, shape.format), large=step.row.size > 1 << 13
        )
        return {
            "index": shape.labels[step.index]["index"],
            "step": step.step,
            "data": data,
            "format": shape.format,
            "change": None if step.change is None else rounded(step.change),
        }


async def _with_silence(events: Events) -> AsyncGenerator[StepOutput | StreamProgress | Result | None, None]:
    """The events, and None whenever none came for a while."""
    while True:
        pending = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({pending}, timeout=_SILENCE_S))[0]:
                yield None
            item = pending.result()
        finally:
            # Left early, the generator must be idle before anyone can close it.
            if not pending.done():
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
        if item is None:
            return
        yield item


def event(name: str, members: dict[str, Any]) -> bytes:
    """One server-sent event with JSON data."""
    return f"event: {name}\ndata: {json.dumps(members, separators=(',', ':'))}\n\n".encode("ascii")
