"""The way of every request that runs a model: parse → decode → submit → encode → respond.

    run()          one task for each request: reads the body, sends the response
      ▼
    _turn()        parse   all requests of one turn of the event loop, then
                   decode  all of them, then
                   submit  all of them to the schedulers of their models
      ⋮            lanes (threads) apply f
    _on_events()   encode, for all requests whose last step ended together

A stage runs for many requests in a row, so its code and data stay in the CPU's cache: a small
request costs half of what it costs alone. A part that takes longer than waking a thread runs in the
codec pool, alone; its `Work` says so. The task of the request then continues with the next stage.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self

import numpy as np
from starlette.requests import ClientDisconnect
from starlette.types import Send

from service.api.message import HeaderFields
from service.api.negotiation import Media
from service.api.request import ApiRequest, Plan, RawHeaders
from service.api.stream import Event, Events, send_events
from service.domain.errors import IgnError, forget_frames
from service.domain.latents import FloatRow
from service.domain.tasks import (
    Images,
    KeepMask,
    Result,
    SchedulingParams,
    StepOutput,
    StepParams,
    StreamProgress,
)
from service.models.registry import ServedModel

MAX_PER_TURN: Final = 32  # requests of one turn of the event loop: about 2 ms of work
_TIMING: Final = b"decode;dur=%.1f, queue;dur=%.1f, compute;dur=%.1f, encode;dur=%.1f"
_SMALL: Final = 1 << 14  # bytes of a response that is sent at once
# of their bodies; a body of 16 KiB takes as long as forty of 400 bytes
_MAX_BYTES_PER_TURN: Final = 1 << 16

Piece = bytes | memoryview
ResponseParts = tuple[RawHeaders, Sequence[Piece], str]
"""Headers, pieces of the body and media type of a response with status 200."""


@dataclass(slots=True, kw_only=True, eq=False)
class InputRows:
    """The input rows of a request: (N, C, H, W) float32 in the model's range, or a list if the
    model takes any size.

    ``keep`` (N, 1, H, W) bool, or a list as well, is True for pixels that every step restores.
    ``inverted`` has for each uploaded image whether light and dark were exchanged, and ``chroma``
    that of one whose luma is its row.
    """

    rows: Images
    keep: KeepMask | list[KeepMask] | None = None
    inverted: Sequence[bool] = ()
    chroma: Sequence[FloatRow | None] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Work(ABC):
    """What a request asks of a model, after its options have been checked: what its endpoint parsed
    it to, and the stages that follow.

    `decode_large`, a large `encode`, and `make_plan` after `must_open` run in the codec pool.
    """

    api: ApiRequest
    model: ServedModel
    params: StepParams
    is_tiled: bool = False
    """Whether the rows are tiles, which run some at a time; then decoding and encoding are
    large.
    """
    is_large: bool = False
    """Whether decoding needs a thread of the codec pool."""
    has_large_response: bool = False
    """Whether encoding needs a thread of the codec pool."""
    must_open: bool = False
    """Whether the plan depends on the headers of uploaded files."""
    headers: HeaderFields = ()
    """Headers of the response that are known before it runs."""
    caching: HeaderFields = ((b"vary", b"Accept"),)
    """Headers for caches."""

    # Of the pipeline. `handle` is that of the scheduler, until the last event.
    inputs: InputRows = field(init=False)
    handle: Any = None
    events: Events | None = None
    result: Result = field(init=False)

    # What `encode` makes, which may run again after an error of another work.
    result_headers: HeaderFields = ()
    content: Sequence[Piece] = ()
    media_type: str = Media.JSON

    @abstractmethod
    def make_plan(self) -> Plan:
        """What the request takes; called once."""

    @classmethod
    @abstractmethod
    def decode(cls, works: Sequence[Self]) -> None:
        """Set the ``inputs`` of small requests to one model. If it raises, it runs again for each
        alone, as `encode`.
        """

    @abstractmethod
    def decode_large(self) -> None:
        """Set the ``inputs`` of this request."""

    @classmethod
    @abstractmethod
    def encode(cls, works: Sequence[Self]) -> None:
        """Set the ``content`` of requests to one model, from their results."""

    def finish(self) -> None:  # noqa: B027 - most have nothing left to do
        """Called when the content is encoded, before the response is sent."""

    async def event(self, item: StepOutput | StreamProgress | Result) -> bytes:
        """The event of a stream for what the scheduler delivers; empty for none."""
        raise NotImplementedError  # no streams

    def scheduling(self) -> SchedulingParams:
        """The request as the scheduler sees it."""
        api = self.api
        keep = self.inputs.keep
        streamed = api.media is Media.EVENTS
        return SchedulingParams(
            step_params=self.params,
            keep_mask=None if isinstance(keep, list) else keep,
            deadline=api.deadline,
            key=api.caller,
            streamed=streamed,
            stream_deadline=api.stream_deadline if streamed else None,
            observer=api.spans,
        )

    def response_headers(self) -> RawHeaders:
        """Headers of every successful response."""
        model = (b"x-ign-model", self.model.tag.encode("latin-1"))
        return [model, *self.caching, *self.headers, *self.result_headers]

    async def run_tiles(self, on_event: Callable[[Any], None] = lambda _: None) -> Result:
        """Run the tiles of images; ``on_event`` gets what a stream sends before the result."""
        inputs = self.inputs
        masks = None if inputs.keep is None else [*inputs.keep]
        return await self.model.run_tiles(
            [*inputs.rows], masks, self.scheduling, self.api.run_codec, on_event
        )


class Stages(NamedTuple):
    """The first stages of an endpoint that runs a model; `Work` has the others.

    `check` sees the head only, before the body is read. `parse` gets the body; that of more than
    `ApiRequest.inline_body` bytes in a thread of the codec pool.
    """

    check: Callable[[ApiRequest], None]
    parse: Callable[[ApiRequest, bytes], Work]


class Pipeline:
    """Runs the stages of requests. Belongs to one event loop."""

    def __init__(self) -> None:
        self._arrived = deque[tuple[Stages, ApiRequest]]()
        self._running: dict[Any, Work] = {}  # by the handle of the scheduler

    async def run(self, stages: Stages, request: ApiRequest, send: Send) -> None:
        """Answer one request; if its client disconnects, its rows are dropped and
        `ClientDisconnect` is raised.

        It raises the reason of a problem document, unless the response has started.
        """
        request.accept()
        stages.check(request)
        request.body = await request.read_body()
        request.task = task = asyncio.current_task()
        try:
            response = await self._run(stages, request, send)
        except asyncio.CancelledError:
            # As of `asyncio.timeout`: the cancellation by `disconnect` is taken back, those of
            # others reach them.
            if request.is_gone and task is not None and task.uncancel() == 0:
                raise ClientDisconnect from None
            raise
        finally:
            # Cancel what still runs, and drop the arrays, whoever still holds the request. An error
            # in `progress` holds the frames that hold the request: break the cycle.
            work: Work | None = request.work
            if work is not None and work.handle is not None:
                del self._running[work.handle]
                work.model.scheduler.cancel(work.handle)
            request.is_over = True
            request.progress = request.task = request.work = None
            request.body = b""
        if isinstance(response, bytes):
            # The end of a stream; here, because a client that stops reading holds up `send`.
            await send({"type": "http.response.body", "body": response})
        else:
            await _send(request, response, send)

    async def _run(self, stages: Stages, request: ApiRequest, send: Send) -> ResponseParts | bytes:
        """Run the stages: large parts in the codec pool, small ones in turns; returns the response,
        or the last piece of a stream.
        """
        if len(request.body) > request.inline_body:
            # Set here: a job that ends after the deadline of its request must not give it anything
            # any more.
            request.work = await request.run_codec(
                "decode", lambda: stages.parse(request, request.body)
            )
        loop = asyncio.get_running_loop()
        if not self._arrived:
            loop.call_soon(self._turn)
        self._arrived.append((stages, request))
        request.progress = progress = loop.create_future()
        await progress
        work: Work = request.work
        if work.is_large:
            await self._decode_large(work)
        if work.is_tiled:
            if request.media is Media.EVENTS:
                return await _stream_tiles(work, send)
            work.result = await work.run_tiles()
        if work.events is not None:
            return await send_events(
                request, work.response_headers(), work.event, work.events, send
            )
        if not work.content:  # encoding is large
            await request.run_codec("encode", lambda: work.encode([work]))
            count_rows([work])
        work.finish()
        return work.response_headers(), work.content, work.media_type

    async def _decode_large(self, work: Work) -> None:
        """Decode in the codec pool, but only for rows that have room in the queue when this
        begins.
        """
        request = work.api
        if work.must_open:
            plan = await request.run_codec("decode", work.make_plan)
            request.hold_plan(plan, work.params.steps)
        request.progress = progress = asyncio.get_running_loop().create_future()
        scheduler = work.model.scheduler
        rows = request.rows or 0
        if work.is_tiled:
            rows = min(rows, scheduler.batch_rows)
        with scheduler.room_for(rows, request.caller):
            await request.run_codec("decode", work.decode_large)
        if not work.is_tiled:
            self._submit([work])  # directly: nobody else takes the room
            await progress

    def _turn(self) -> None:
        """The stages up to the scheduler, for the requests that arrived in this turn."""
        small = list[Work]()
        count = 0
        size = 0
        while self._arrived and count < MAX_PER_TURN and size < _MAX_BYTES_PER_TURN:
            stages, request = self._arrived.popleft()
            count += 1
            size += 0 if request.work is not None else len(request.body)
            if request.is_over or (work := _parse_small(stages, request)) is None:
                continue
            if work.is_large:
                request.advance()
            else:
                small.append(work)
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._turn)
        for decoded in _together("decode", small):
            self._submit(decoded)

    def _submit(self, works: Sequence[Work]) -> None:
        try:
            rows = [(np.asarray(work.inputs.rows), work.scheduling()) for work in works]
            handles = works[0].model.scheduler.submit(rows, self._on_events)
        except Exception as exc:
            for work in works:
                work.api.fail(exc)
            return
        for work, handle in zip(works, handles, strict=True):
            if isinstance(handle, IgnError):
                work.api.fail(handle)
                continue
            work.handle = handle
            self._running[handle] = work
            if work.api.media is Media.EVENTS:
                work.events = asyncio.Queue()
                work.api.advance()

    def _on_events(self, events: Sequence[tuple[Any, Event]]) -> None:
        """Called by a scheduler with what its requests have to deliver in this turn."""
        ended: list[Work] = []
        for handle, event in events:
            work = self._running.get(handle)
            if work is None:  # the client has disconnected
                continue
            if isinstance(event, Result | IgnError):
                del self._running[handle]
                work.handle = None
            if work.events is not None:
                _deliver(work, work.events, event)
            elif isinstance(event, Result):
                work.result = event
                ended.append(work)
            elif isinstance(event, IgnError):
                work.api.fail(event)
        self._encode(ended)

    def _encode(self, ended: list[Work]) -> None:
        if len(ended) > MAX_PER_TURN:
            asyncio.get_running_loop().call_soon(self._encode, ended[MAX_PER_TURN:])
        works = [work for work in ended[:MAX_PER_TURN] if not work.api.is_over]
        small = [work for work in works if not work.has_large_response]
        start = time.perf_counter()
        for encoded in _together("encode", small):
            count_codec("encode", encoded, start)
            count_rows(encoded)
            start = time.perf_counter()
        for work in works:
            work.api.advance()


def _deliver(work: Work, events: Events, event: Event) -> None:
    """Pass what a scheduler delivers on to a stream."""
    if isinstance(event, Result):
        work.result = event
        count_rows([work])
    # Steps that wait for a slow reader are counted as bytes of its response; progress would only
    # add up.
    if events.empty() or not isinstance(event, StreamProgress):
        events.put_nowait(event)


async def _stream_tiles(work: Work, send: Send) -> bytes:
    """Run the tiles of a request and send what comes of them; returns the last piece."""
    events: Events = asyncio.Queue()

    async def run() -> None:
        try:
            result = await work.run_tiles(partial(_deliver, work, events))
            _deliver(work, events, result)
        except Exception as exc:  # the one that reads the events raises it
            events.put_nowait(exc)

    task = asyncio.create_task(run())
    try:
        return await send_events(work.api, work.response_headers(), work.event, events, send)
    finally:
        task.cancel()
        while not events.empty():
            event = events.get_nowait()
            if isinstance(event, Exception):  # that nobody has read
                forget_frames(event)


def _parse_small(stages: Stages, request: ApiRequest) -> Work | None:
    """Parse the body, unless the codec pool has, and count what the response will take: before a
    row runs for it. None if that fails.
    """
    start = time.perf_counter()
    work: Work | None = request.work
    try:
        if work is None:
            work = request.work = stages.parse(request, request.body)
        request.body = b""
        if not work.must_open:
            request.hold_plan(work.make_plan(), work.params.steps)
    except Exception as exc:
        request.fail(exc)
        work = None
    request.spend("decode", time.perf_counter() - start)
    return work


def _together(stage: str, works: Iterable[Work]) -> Iterator[list[Work]]:
    """Run a stage for the works of one class and model together, and give those that have not
    failed. If it raises, it runs for each alone: the error of one, such as its deadline, must not
    end the others.
    """
    groups: dict[tuple[type[Work], ServedModel], list[Work]] = {}
    for work in works:
        groups.setdefault((type(work), work.model), []).append(work)
    left = [*groups.values()]
    for group in left:
        try:
            getattr(group[0], stage)(group)
        except Exception as exc:
            if len(group) == 1:
                group[0].api.fail(exc)
            else:
                left += [[work] for work in group]
        else:
            yield group


def count_codec(part: str, works: Sequence[Work], start: float) -> None:
    """Count one codec call on the event loop for several requests, each of which has its share of
    the time.

    ``start`` is when it began, by `time.perf_counter`. The codec pool counts by itself.
    """
    seconds = time.perf_counter() - start
    works[0].api.services.metrics.codec(part).observe((seconds,))
    for work in works:
        work.api.spend(part, seconds / len(works))


def count_rows(works: Sequence[Work]) -> None:
    """Add the results of requests to one model to their timing, to the metrics and to their log
    lines.
    """
    together: dict[tuple[str, str | None], list[Result]] = {}
    for work in works:
        api = work.api
        result = work.result
        api.seconds["queue"] += result.queue_s
        api.seconds["compute"] += result.compute_s
        together.setdefault((api.endpoint, api.api_key), []).append(result)
    for (endpoint, api_key), results in together.items():
        works[0].api.services.metrics.rows(works[0].model.ref, endpoint, results, api_key)


async def _send(request: ApiRequest, response: ResponseParts, send: Send) -> None:
    """Send a small response at once, a large one piece after piece, as fast as the client reads.

    Joining pieces would copy up to 60 MB on the event loop.
    """
    headers, pieces, media_type = response
    size = sum(map(len, pieces))
    headers += [
        (b"server-timing", _TIMING % tuple([each * 1e3 for each in request.seconds.values()])),
        (b"content-length", b"%d" % size),
        (b"content-type", media_type.encode("ascii")),
    ]
    if size <= _SMALL:
        pieces = [pieces[0] if len(pieces) == 1 else b"".join(pieces)]
        # Without CORS, which adds headers.
        if send == request.send and request.send_whole(HTTPStatus.OK, headers, pieces[0]):
            return
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})
