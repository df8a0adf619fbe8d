"""`text/event-stream`: recorded steps as soon as they exist, progress, and the answer at the end."""

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
from service.api.native.responses import ResponseSpec, envelope, image, picture, round_metric
from service.domain.blending import blend_step
from service.domain.errors import DeadlineExceeded
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress

_KEEPALIVE_S: Final = 10.0  # after so long without an event, a comment line keeps proxies from hanging up

Events = AsyncGenerator[StepOutput | StreamProgress | Result, None]


class EventStream(Response):
    """Runs rows and sends their steps as events.

    A failure before the first event is an ordinary problem; a later one is an event `error`.

    Args:
        api: the request.
        spec: of the answer.
        rows: (N, C, H, W), the inputs of f.
        params: how they run; `progress` is set.
    """

    def __init__(self, api: ApiRequest, spec: ResponseSpec, rows: FloatRows, params: SchedulingParams) -> None:
        super().__init__(media_type=Media.EVENTS, headers=api.response_headers(spec.model, spec.members.get("seed")))
        self._api, self._spec, self._rows, self._params = api, spec, rows, params
        for name, value in (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")):
            self.headers[name] = value
        del self.headers["content-length"], self.headers["server-timing"]  # neither is known yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run to the end, or until the client leaves."""
        await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        last = b""
        # Closing the generator cancels its rows.
        async with aclosing(self._spec.model.scheduler.stream(self._rows, self._params)) as events:
            # Until the first event exists, the answer can still be a problem with its own status.
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with (
                    asyncio.timeout(self._seconds_until_timeout()),
                    aclosing(self._encoded_events(first, events)) as texts,
                ):
                    async for text in texts:
                        await send({"type": "http.response.body", "body": text, "more_body": True})
            except TimeoutError:
                last = self._error_event(DeadlineExceeded("the stream took longer than IGN_STREAM_TIMEOUT_S allows"))
            except Exception as exc:
                last = self._error_event(exc)
        # After the rows are cancelled, because a client that no longer reads can block this.
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _error_event(self, exc: Exception) -> bytes:
        request_id = self._api.request_id
        found = describe(exc)
        if found.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log_failure(exc, request_id)
        self._api.request.state.problem = found.code
        return event("error", found.body(request_id))

    def _seconds_until_timeout(self) -> float:
        end = self._api.arrival + self._api.services.settings.stream_timeout_s
        return end - time.monotonic()

    async def _encoded_events(
        self, first: StepOutput | StreamProgress | Result, events: Events
    ) -> AsyncGenerator[bytes, None]:
        yield await self._encode_event(first)
        async with aclosing(_with_keepalive(events)) as items:
            async for item in items:
                yield b": still here\n\n" if item is None else await self._encode_event(item)

    async def _encode_event(self, item: StepOutput | StreamProgress | Result) -> bytes:
        if isinstance(item, StreamProgress):
            members = {"steps_done": item.steps_done, "steps": item.steps, "rows_done": item.rows_done}
            return event("progress", members | {"rows": item.rows})
        if isinstance(item, StepOutput):
            return event("step", await self._step(item))
        api, spec = self._api, self._spec
        api.count_rows(spec.model, item)
        images = [image(spec, item, place, None) for place in range(len(item.rows))]
        return event("done", envelope(api, spec.model, images, spec.members))

    async def _step(self, step: StepOutput) -> dict[str, Any]:
        spec = self._spec
        step = blend_step(self._rows, step, spec.strength)
        data = await self._api.run_codec(
            "encode", lambda: picture(step.row, spec.model.card, spec.format), large=step.row.size > 1 << 13
        )
        return {
            "index": spec.labels[step.index]["index"],
            "step": step.step,
            "data": data,
            "format": spec.format,
            "change": None if step.change is None else round_metric(step.change),
        }


async def _with_keepalive(events: Events) -> AsyncGenerator[StepOutput | StreamProgress | Result | None, None]:
    """The events, and None whenever none came for a while."""
    while True:
        pending = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({pending}, timeout=_KEEPALIVE_S))[0]:
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
