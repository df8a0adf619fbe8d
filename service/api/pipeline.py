"""The way of every request that runs a model: parse → decode → submit → respond.

    run()          one task for each request: reads the body, sends the response
      │ _join_turn
      ▼
    _turn()        parse   all requests of one turn of the event loop, then
                   decode  all of them, then
                   submit  all of them to the schedulers of their models
      ⋮            worker threads apply f
    _on_events()   encode and respond, for all requests whose last step ended together

A stage runs for many requests in a row, so its code and data stay in the CPU's cache: a small
request costs half of what it costs alone. A part that takes longer than waking a thread runs in the
codec pool, with a list of one. The task of the request then continues with the next stage.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Send

from service.api.body import MIN_HELD
from service.api.request import ApiRequest, ResponseParts
from service.domain.errors import IgnError, forget_frames
from service.domain.tasks import Images, Result, SchedulingParams, StreamProgress
from service.images.pool import CodecThread
from service.models.registry import ServedModel

LARGE_BODY: Final = 1 << 15  # bytes; a larger body is parsed in the codec pool
MAX_PER_TURN: Final = 32  # requests of one turn of the event loop: about 2 ms of work
_SMALL: Final = 1 << 14  # bytes of a response that is sent at once
# of their bodies; a body of 16 KiB takes as long as forty of 400 bytes
_MAX_BYTES_PER_TURN: Final = 1 << 16

Item = TypeVar("Item")
Key = TypeVar("Key")

PathParameters = Mapping[str, str]
"""The parameters in the path of a request, by their names in the template of its route."""


class Plan(NamedTuple):
    """What a request takes, known before any of its pixels is decoded. It is admitted, and runs, as
    planned.
    """

    rows: int
    """Rows, or tiles of images of any size."""
    steps: int
    """Steps of each row."""
    bytes: int
    """What the response and the arrays that it is made from take, at most."""


class Work(Protocol):
    """What a request asks of a model, after its options have been checked."""

    model: ServedModel
    plan: Plan | None
    """None until `open`, if the plan depends on the headers of uploaded files."""

    def open(self, thread: CodecThread) -> None:
        """Read the headers of uploaded files, and plan the request."""
        ...

    @property
    def is_tiled(self) -> bool:
        """Whether the rows are tiles, which run some at a time; then decoding and encoding are
        large.
        """
        ...

    @property
    def is_large(self) -> bool:
        """Whether decoding needs a thread of the codec pool."""
        ...

    @property
    def has_large_response(self) -> bool:
        """Whether encoding the response needs a thread of the codec pool."""
        ...

    def scheduling(self, inputs: Any) -> SchedulingParams:
        """The request as the scheduler sees it; ``streamed`` if its events are sent as they
        come.
        """
        ...

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        ...


class Stages(NamedTuple):
    """The stages of an endpoint that runs a model. `check` sees the head only, before the body is
    read.

    `has_large_body` says whether `parse` needs a thread of the codec pool. `decode` returns, for
    each of several small requests, its inputs or the error of one that has none; their ``rows`` are
    (N, C, H, W) float32 in the model's range. `decode_large` returns those of one request. `encode`
    gets (work, rows, result) of each; if it raises, it runs again for each request alone. `respond`
    gets what `encode` made. All but a large `parse`, `decode_large` and a large `encode` run on the
    event loop.
    """

    check: Callable[[ApiRequest], None]
    has_large_body: Callable[[ApiRequest, bytes], bool]
    parse: Callable[[ApiRequest, bytes, PathParameters], Work]
    decode: Callable[[Sequence[Any]], Sequence[Any]]
    decode_large: Callable[[Any, CodecThread], Any]
    encode: Callable[[Sequence[tuple[Any, Images, Result]]], Sequence[Any]]
    respond: Callable[[Sequence[tuple[Any, Any]]], list[ResponseParts]]


class Pipeline:
    """Runs the stages of requests. Belongs to one event loop."""

    def __init__(self) -> None:
        self._arrived: list[ApiRequest] = []
        self._running: dict[Any, ApiRequest] = {}  # by the handle of the scheduler

    async def run(self, stages: Stages, request: ApiRequest, send: Send) -> None:
        """Answer one request; if its client disconnects, its rows are dropped and
        `ClientDisconnect` is raised.

        It raises the reason of a problem document, unless the response has started.
        """
        request.accept()
        request.stages = stages
        stages.check(request)
        request.body = await request.read_body()
        response = None
        request.task = task = asyncio.current_task()
        try:
            last = await self._run(stages, request, send)
            response = request.response
        except asyncio.CancelledError:
            # As of `asyncio.timeout`: the cancellation by `disconnect` is taken back, those of
            # others reach them.
            if request.is_gone and task is not None and task.uncancel() == 0:
                raise ClientDisconnect from None
            raise
        finally:
            request.is_over = True
            self._forget(request)
        if response is not None:
            await _send(request, response, send)
        else:  # of a stream; sent here, because a client that stops reading holds up `send`
            await send({"type": "http.response.body", "body": last})

    async def _run(self, stages: Stages, request: ApiRequest, send: Send) -> bytes:
        """Run the stages: large parts in the codec pool, small ones in turns; returns the last
        piece of a stream.
        """
        if stages.has_large_body(request, request.body):
            # Set here: a job that ends after the deadline of its request must not give it anything
            # any more.
            request.work = await request.run_codec("decode", lambda _: _parse(request))
        await self._join_turn(request)
        if request.inputs is None:  # decoding is large
            await self._decode_large(request)
        if request.work.is_tiled:
            return await _run_tiles(request, send)
        if request.events is not None:
            last: bytes = await request.work.send_events(request.inputs, request.events, send)
            return last
        if request.response is None:  # so is the response
            await _respond_large(request)
        return b""

    async def _decode_large(self, request: ApiRequest) -> None:
        """Decode in the codec pool, but only for rows that have room in the queue when this
        begins.
        """
        work = request.work
        if work.plan is None:
            await request.run_codec("decode", work.open)
            _hold_plan(request)
        request.progress = progress = asyncio.get_running_loop().create_future()
        scheduler = work.model.scheduler
        rows = min(work.plan.rows, scheduler.batch_rows) if work.is_tiled else work.plan.rows
        with scheduler.room_for(rows, request.caller):
            request.inputs = await request.run_codec(
                "decode", partial(request.stages.decode_large, work)
            )
        if work.is_tiled:
            return
        self._submit(work.model, [request])  # directly: nobody else takes the room
        await progress

    def _forget(self, request: ApiRequest) -> None:
        """Cancel what still runs. An error in ``progress`` holds the frames that hold the request:
        break the cycle.
        """
        if request.handle is not None:
            del self._running[request.handle]
            request.work.model.scheduler.cancel(request.handle)
        request.clear()

    def _join_turn(self, request: ApiRequest) -> "asyncio.Future[None]":
        """Run the stages for a request in this turn or a later one."""
        loop = asyncio.get_running_loop()
        if not self._arrived:
            loop.call_soon(self._turn)
        self._arrived.append(request)
        request.progress = loop.create_future()
        return request.progress

    def _turn(self) -> None:
        """The stages up to the scheduler, for the requests that arrived in this turn."""
        requests = [request for request in self._take() if not request.is_settled]
        for request in requests:
            _parse_small(request)
        requests = [request for request in requests if not request.is_settled]
        small = [request for request in requests if not request.work.is_large]
        for request in requests:
            if request.work.is_large:
                request.advance()
        for decode, group in _grouped(small, attrgetter("stages.decode")):
            _decode(decode, group)
        decoded = [request for request in small if request.inputs is not None]
        for model, group in _grouped(decoded, attrgetter("work.model")):
            self._submit(model, group)

    def _take(self) -> list[ApiRequest]:
        arrived = self._arrived
        size = 0
        count = 0
        while count < min(len(arrived), MAX_PER_TURN) and size < _MAX_BYTES_PER_TURN:
            size += 0 if arrived[count].work is not None else len(arrived[count].body)
            count += 1
        self._arrived = arrived[count:]
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._turn)
        return arrived[:count]

    def _submit(self, model: ServedModel, requests: list[ApiRequest]) -> None:
        try:
            rows = [
                (request.inputs.rows, request.work.scheduling(request.inputs))
                for request in requests
            ]
            handles = model.scheduler.submit(rows, self._on_events)
        except Exception as exc:
            for request in requests:
                request.fail(exc)
            return
        for request, (_, params), handle in zip(requests, rows, handles, strict=True):
            if isinstance(handle, IgnError):
                request.fail(request.work.error(handle))
                continue
            request.handle = handle
            self._running[handle] = request
            if params.streamed:
                request.events = asyncio.Queue()
                request.advance()

    def _on_events(self, events: list[tuple[Any, Any]]) -> None:
        """Called by a scheduler with what its requests have to deliver in this turn."""
        ended: list[ApiRequest] = []
        for handle, event in events:
            request = self._running.get(handle)
            if request is None:  # the client has disconnected
                continue
            if isinstance(event, Result | IgnError):
                del self._running[handle]
                request.handle = None
            if request.events is not None:
                # Steps that wait for a slow reader are counted as bytes of its response; progress
                # would only add up.
                if request.events.empty() or not isinstance(event, StreamProgress):
                    request.events.put_nowait(event)
            elif isinstance(event, IgnError):
                request.fail(request.work.error(event))
            else:
                request.result = event
                ended.append(request)
        self._respond(ended)

    def _respond(self, ended: list[ApiRequest]) -> None:
        if len(ended) > MAX_PER_TURN:
            asyncio.get_running_loop().call_soon(self._respond, ended[MAX_PER_TURN:])
        requests = [request for request in ended[:MAX_PER_TURN] if not request.is_settled]
        small = [request for request in requests if not request.work.has_large_response]
        for stages, group in _grouped(small, attrgetter("stages")):
            _respond_to(stages, group)
        for request in requests:
            request.advance()


async def _run_tiles(request: ApiRequest, send: Send) -> bytes:
    """Run the tiles of a request and respond; returns the last piece of a stream."""
    work = request.work
    inputs = request.inputs
    if not work.scheduling(inputs).streamed:
        request.result = await work.run_tiles(inputs)
        await _respond_large(request)
        return b""
    events = asyncio.Queue[Any]()
    task = asyncio.create_task(_deliver(work.run_tiles(inputs, events.put_nowait), events))
    try:
        last: bytes = await work.send_events(inputs, events, send)
        return last
    finally:
        task.cancel()
        while not events.empty():
            event = events.get_nowait()
            if isinstance(event, Exception):  # that nobody has read
                forget_frames(event)


async def _deliver(result: Coroutine[Any, Any, Result], events: "asyncio.Queue[Any]") -> None:
    try:
        events.put_nowait(await result)
    except Exception as exc:  # the one that reads the events raises it
        events.put_nowait(exc)


async def _respond_large(request: ApiRequest) -> None:
    stages = request.stages
    ended = [request.ended()]
    (content,) = await request.run_codec("encode", lambda _: stages.encode(ended))
    (request.response,) = stages.respond([(request.work, content)])


def _parse(request: ApiRequest) -> Any:
    return request.stages.parse(request, request.body, request.route.parameters)


def _hold_plan(request: ApiRequest) -> None:
    plan: Plan = request.work.plan
    request.rows = plan.rows
    request.steps = plan.steps
    if plan.bytes > MIN_HELD:
        request.hold(plan.bytes)


def _parse_small(request: ApiRequest) -> None:
    """Parse the body, unless the codec pool has, and count what the response will take: before a
    row runs for it.
    """
    start = time.perf_counter()
    try:
        if request.work is None:
            request.work = _parse(request)
        request.body = b""
        if request.work.plan is not None:
            _hold_plan(request)
    except Exception as exc:
        request.fail(exc)
    request.spend("decode", time.perf_counter() - start)


def _decode(decode: Callable[[Sequence[Any]], Sequence[Any]], requests: list[ApiRequest]) -> None:
    try:
        decoded = decode([request.work for request in requests])
    except Exception as exc:
        _each_alone(partial(_decode, decode), requests, exc)
        return
    for request, inputs in zip(requests, decoded, strict=True):
        if isinstance(inputs, Exception):
            request.fail(inputs)
        else:
            request.inputs = inputs


def _respond_to(stages: Stages, requests: list[ApiRequest]) -> None:
    try:
        contents = stages.encode([request.ended() for request in requests])
    except Exception as exc:
        _each_alone(partial(_respond_to, stages), requests, exc)
        return
    try:
        responses = stages.respond(
            [(request.work, content) for request, content in zip(requests, contents, strict=True)]
        )
    except Exception as exc:  # not again: the rows are counted
        for request in requests:
            request.fail(exc)
        return
    for request, response in zip(requests, responses, strict=True):
        request.response = response


def _each_alone(
    stage: Callable[[list[ApiRequest]], None], requests: list[ApiRequest], exc: Exception
) -> None:
    """After a stage has raised: the error of one request, such as its deadline, must not end the
    others.
    """
    if len(requests) == 1:
        requests[0].fail(exc)
        return
    for request in requests:
        stage([request])


async def _send(request: ApiRequest, response: ResponseParts, send: Send) -> None:
    """Send a small response at once, a large one piece after piece, as fast as the client reads.

    Joining pieces would copy up to 60 MB on the event loop.
    """
    headers, pieces, media_type = response
    size = sum(map(len, pieces))
    headers += [
        request.server_timing(),
        (b"content-length", b"%d" % size),
        (b"content-type", media_type.encode("ascii")),
    ]
    if size <= _SMALL and send == request.send:  # without CORS, which adds headers
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if request.send_whole(HTTPStatus.OK, headers, whole):
            return
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})


def _grouped(items: Sequence[Item], key: Callable[[Item], Key]) -> Iterable[tuple[Key, list[Item]]]:
    """The items by their key, in order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.items()
