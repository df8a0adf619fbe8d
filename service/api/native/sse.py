"""Server-sent events: each recorded step as soon as it is computed, the progress, and the final answer."""

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

_KEEPALIVE_S: Final = (
    10.0  # a comment line after so many seconds without an event, so that proxies keep the connection open
)

Events = AsyncGenerator[StepOutput | StreamProgress | Result, None]


class EventStream(Response):
    """Response that runs rows and sends their steps as events.

    A failure before the first event becomes an ordinary problem response with its own status. A later failure becomes
    the event `error`, because status 200 is sent already.

    Args:
        api: the request.
        spec: of the response.
        rows: (N, C, H, W) float32, the inputs of f.
        params: of the scheduler, with `progress` set.
    """

    def __init__(self, api: ApiRequest, spec: ResponseSpec, rows: FloatRows, params: SchedulingParams) -> None:
        super().__init__(media_type=Media.EVENTS, headers=api.response_headers(spec.model, spec.members.get("seed")))
        self._api, self._spec, self._rows, self._params = api, spec, rows, params
        for name, value in (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")):
            self.headers[name] = value
        del self.headers["content-length"], self.headers["server-timing"]  # unknown before the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until all rows are done or the client disconnects."""
        await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        last = b""
        # Closing the generator cancels its rows, also when `send` raises or this task is cancelled.
        async with aclosing(self._spec.model.scheduler.stream(self._rows, self._params)) as events:
            # Send no headers before the first event, so that a failure until then keeps its own status.
            first = await anext(events)
            self._api.deadline = self._api.arrival + self._api.services.settings.stream_timeout_s
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with (
                    asyncio.timeout(self._api.deadline - time.monotonic()),
                    aclosing(self._encoded_events(first, events)) as texts,
                ):
                    async for text in texts:
                        await send({"type": "http.response.body", "body": text, "more_body": True})
            except TimeoutError:
                last = self._error_event(DeadlineExceeded("the stream took longer than IGN_STREAM_TIMEOUT_S allows"))
            except Exception as exc:
                last = self._error_event(exc)
        # Outside the block above: a client that stops reading can block `send`, and its rows must not run on.
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _error_event(self, exc: Exception) -> bytes:
        request_id = self._api.request_id
        problem = describe(exc)
        if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log_failure(exc, request_id)
        self._api.state["problem"] = problem.code
        return event("error", problem.body(request_id))

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
        images = [image(spec, item, index, None) for index in range(len(item.rows))]
        return event("done", envelope(api, spec.model, images, spec.members))

    async def _step(self, step: StepOutput) -> dict[str, Any]:
        spec = self._spec
        step = blend_step(self._rows, step, spec.strength)
        options = spec.options
        data = await self._api.run_codec(
            "encode",
            lambda: picture(step.row, spec.model.card, options),
            large=step.row.size * options.scale**2 > 1 << 13,
        )
        return {
            "index": spec.labels[step.index]["index"],
            "step": step.step,
            "data": data,
            "format": options.format,
            "change": None if step.change is None else round_metric(step.change),
        }


async def _with_keepalive(events: Events) -> AsyncGenerator[StepOutput | StreamProgress | Result | None, None]:
    """The events, and None after every 10 s without one."""
    while True:
        pending = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({pending}, timeout=_KEEPALIVE_S))[0]:
                yield None
            item = pending.result()
        finally:
            # `aclose` of a running generator raises RuntimeError, so wait until the cancelled `anext` has ended.
            if not pending.done():
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
            elif not pending.cancelled():
                pending.exception()  # else asyncio logs it as an error if this task was cancelled in the same turn
        if item is None:
            return
        yield item


def event(name: str, members: dict[str, Any]) -> bytes:
    """Encode one server-sent event with JSON data."""
    return f"event: {name}\ndata: {json.dumps(members, separators=(',', ':'))}\n\n".encode("ascii")
