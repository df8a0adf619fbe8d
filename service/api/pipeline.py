"""The way of every request that runs a model: parse → decode → submit → respond.

    run()          one task for each request: reads the body, sends the response
      │ _join_turn
      ▼
    _turn()        parse   all requests of one turn of the event loop, then
                   decode  all of them, then
                   submit  all of them to the schedulers of their models
      ⋮            worker threads apply f
    _on_events()   encode and respond, for all requests whose last step ended together

A stage runs for many requests in a row, so its code and data stay in the CPU's cache: a small request costs half of
what it costs alone. A part that takes longer than waking a thread runs in the codec pool, with a list of one. The task
of the request then continues with the next stage.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from service.api.request import MIN_HELD, ApiRequest, field_name
from service.domain.errors import IgnError, forget_frames
from service.domain.tasks import Images, Result, SchedulingParams, StreamProgress
from service.images.pool import CodecThread
from service.models.registry import ServedModel

LARGE_BODY: Final = 1 << 15  # bytes; a larger body is parsed in the codec pool
MAX_PER_TURN: Final = 32  # requests of one turn of the event loop: about 2 ms of work
_MAX_BYTES_PER_TURN: Final = 1 << 16  # of their bodies; a body of 16 KiB takes as long as forty of 400 bytes

_GRACE_S: Final = 0.25  # most requests end within this time, even under load, and need no task that watches them

Item = TypeVar("Item")
Key = TypeVar("Key")

PathParameters = Mapping[str, str]
"""The parameters in the path of a request, by their names in the template of its route."""
ResponseParts = tuple[dict[str, str], Sequence[bytes | memoryview], str]
"""Headers, pieces of the body and media type of a response with status 200."""


class Plan(NamedTuple):
    """What a request takes, known before any of its pixels is decoded. It is admitted, and runs, as planned."""

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
        """Whether the rows are tiles, which run some at a time; then decoding and encoding are large."""
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
        """The request as the scheduler sees it; ``streamed`` if its events are sent as they come."""
        ...

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        ...


class Endpoint(NamedTuple):
    """The stages of one endpoint. `check` sees the head only, before the body is read.

    `has_large_body` says whether `parse` needs a thread of the codec pool. `decode` returns, for each of several small
    requests, its inputs or the error of one that has none; their ``rows`` are (N, C, H, W) float32 in the model's
    range. `decode_large` returns those of one request. `encode` gets (work, rows, result) of each; if it raises, it
    runs again for each request alone. `respond` gets what `encode` made. All but a large `parse`, `decode_large` and a
    large `encode` run on the event loop.
    """

    template: str
    check: Callable[[ApiRequest], None]
    has_large_body: Callable[[ApiRequest, bytes], bool]
    parse: Callable[[ApiRequest, bytes, PathParameters], Work]
    decode: Callable[[Sequence[Any]], Sequence[Any]]
    decode_large: Callable[[Any, CodecThread], Any]
    encode: Callable[[Sequence[tuple[Any, Images, Result]]], Sequence[Any]]
    respond: Callable[[Sequence[tuple[Any, Any]]], list[ResponseParts]]
    methods: tuple[str, ...] = ("POST",)


@dataclass(slots=True, eq=False)
class Call:
    """One request in the pipeline; `progress` ends when its task has something to do again."""

    endpoint: Endpoint
    api: ApiRequest
    parameters: PathParameters
    body: bytes
    progress: "asyncio.Future[None] | None" = None
    work: Any = None
    inputs: Any = None
    handle: Any = None  # of the scheduler, until the last event
    events: "asyncio.Queue[Any] | None" = None
    result: Result | None = None
    response: ResponseParts | None = None

    def ended(self) -> tuple[Any, Images, Any]:
        """What `Endpoint.encode` gets."""
        return self.work, self.inputs.rows, self.result

    def clear(self) -> None:
        """Drop the arrays of a request that is over, whoever still holds the call."""
        self.progress = self.work = self.inputs = self.events = self.result = self.response = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing awaits this call: it failed, it has advanced, or its client has gone."""
        return self.progress is None or self.progress.done()

    def advance(self) -> None:
        """Let the task of the request continue."""
        if self.progress is not None and not self.progress.done():
            self.progress.set_result(None)

    def fail(self, exc: Exception) -> None:
        """End the request with an error."""
        if self.progress is not None and not self.progress.done():
            self.progress.set_exception(exc)


class Pipeline:
    """Runs the stages of requests. Belongs to one event loop."""

    def __init__(self) -> None:
        self._arrived: list[Call] = []
        self._running: dict[Any, Call] = {}  # by the handle of the scheduler
        self._disconnects = DisconnectSweep()

    async def run(self, endpoint: Endpoint, api: ApiRequest, parameters: PathParameters, send: Send) -> None:
        """Answer one request; if its client disconnects, its rows are dropped and `ClientDisconnect` is raised.

        It raises the reason of a problem document, unless the response has started.
        """
        endpoint.check(api)
        call = Call(endpoint, api, parameters, await api.read_body())
        response = None
        try:
            with DisconnectWatch(self._disconnects, api.receive):
                last = await self._run(call, send)
            response = call.response
        finally:
            api.is_over = True
            self._forget(call)
        if response is not None:
            await _send(response, send)
        else:  # of a stream; sent here, because a client that stops reading holds up `send`
            await send({"type": "http.response.body", "body": last})

    async def _run(self, call: Call, send: Send) -> bytes:
        """Run the stages: large parts in the codec pool, small ones in turns; returns the last piece of a stream."""
        api = call.api
        if call.endpoint.has_large_body(api, call.body):
            await api.run_codec("decode", lambda _: _parse(call))
        await self._join_turn(call)
        if call.inputs is None:  # decoding is large
            await self._decode_large(call)
        if call.work.is_tiled:
            return await _run_tiles(call, send)
        if call.events is not None:
            last: bytes = await call.work.send_events(call.inputs, call.events, send)
            return last
        if call.response is None:  # so is the response
            await _respond_large(call)
        return b""

    async def _decode_large(self, call: Call) -> None:
        """Decode in the codec pool, but only for rows that have room in the queue when this begins."""
        work, api = call.work, call.api
        if work.plan is None:
            await api.run_codec("decode", work.open)
            _hold_plan(call)
        call.progress = progress = asyncio.get_running_loop().create_future()
        scheduler = work.model.scheduler
        rows = min(work.plan.rows, scheduler.batch_rows) if work.is_tiled else work.plan.rows
        with scheduler.room_for(rows, api.caller):
            call.inputs = await api.run_codec("decode", partial(call.endpoint.decode_large, work))
        if work.is_tiled:
            return
        self._submit(work.model, [call])  # directly: nobody else takes the room
        await progress

    def _forget(self, call: Call) -> None:
        """Cancel what still runs. An error in ``progress`` holds the frames that hold the call: break the cycle."""
        if call.handle is not None:
            del self._running[call.handle]
            call.work.model.scheduler.cancel(call.handle)
        call.clear()

    def _join_turn(self, call: Call) -> "asyncio.Future[None]":
        """Run the stages for a request in this turn or a later one."""
        loop = asyncio.get_running_loop()
        if not self._arrived:
            loop.call_soon(self._turn)
        self._arrived.append(call)
        call.progress = loop.create_future()
        return call.progress

    def _turn(self) -> None:
        """The stages up to the scheduler, for the requests that arrived in this turn."""
        calls = [call for call in self._take() if not call.is_settled]
        for call in calls:
            _parse_small(call)
        calls = [call for call in calls if not call.is_settled]
        small = [call for call in calls if not call.work.is_large]
        for call in calls:
            if call.work.is_large:
                call.advance()
        for decode, group in _grouped(small, lambda call: call.endpoint.decode):
            _decode(decode, group)
        for model, group in _grouped([call for call in small if call.inputs is not None], lambda call: call.work.model):
            self._submit(model, group)

    def _take(self) -> list[Call]:
        arrived, size, count = self._arrived, 0, 0
        while count < min(len(arrived), MAX_PER_TURN) and size < _MAX_BYTES_PER_TURN:
            size += 0 if arrived[count].work is not None else len(arrived[count].body)
            count += 1
        self._arrived = arrived[count:]
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._turn)
        return arrived[:count]

    def _submit(self, model: ServedModel, calls: list[Call]) -> None:
        try:
            requests = [(call.inputs.rows, call.work.scheduling(call.inputs)) for call in calls]
            handles = model.scheduler.submit(requests, self._on_events)
        except Exception as exc:
            for call in calls:
                call.fail(exc)
            return
        for call, (_, params), handle in zip(calls, requests, handles, strict=True):
            if isinstance(handle, IgnError):
                call.fail(call.work.error(handle))
                continue
            call.handle = handle
            self._running[handle] = call
            if params.streamed:
                call.events = asyncio.Queue()
                call.advance()

    def _on_events(self, events: list[tuple[Any, Any]]) -> None:
        """Called by a scheduler with what its requests have to deliver in this turn."""
        ended: list[Call] = []
        for handle, event in events:
            call = self._running.get(handle)
            if call is None:  # the client has disconnected
                continue
            if isinstance(event, Result | IgnError):
                del self._running[handle]
                call.handle = None
            if call.events is not None:
                # Steps that wait for a slow reader are counted as bytes of its response; progress would only add up.
                if call.events.empty() or not isinstance(event, StreamProgress):
                    call.events.put_nowait(event)
            elif isinstance(event, IgnError):
                call.fail(call.work.error(event))
            else:
                call.result = event
                ended.append(call)
        self._respond(ended)

    def _respond(self, ended: list[Call]) -> None:
        if len(ended) > MAX_PER_TURN:
            asyncio.get_running_loop().call_soon(self._respond, ended[MAX_PER_TURN:])
        calls = [call for call in ended[:MAX_PER_TURN] if not call.is_settled]
        small = [call for call in calls if not call.work.has_large_response]
        for endpoint, group in _grouped(small, lambda call: call.endpoint):
            _respond_to(endpoint, group)
        for call in calls:
            call.advance()


async def _run_tiles(call: Call, send: Send) -> bytes:
    """Run the tiles of a request and respond; returns the last piece of a stream."""
    work, inputs = call.work, call.inputs
    if not work.scheduling(inputs).streamed:
        call.result = await work.run_tiles(inputs)
        await _respond_large(call)
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


async def _respond_large(call: Call) -> None:
    endpoint, ended = call.endpoint, [call.ended()]
    (content,) = await call.api.run_codec("encode", lambda _: endpoint.encode(ended))
    (call.response,) = endpoint.respond([(call.work, content)])


def _parse(call: Call) -> None:
    call.work = call.endpoint.parse(call.api, call.body, call.parameters)
    call.body = b""


def _hold_plan(call: Call) -> None:
    plan: Plan = call.work.plan
    state = call.api.state
    state["rows"] = plan.rows
    state["steps"] = plan.steps
    if plan.bytes > MIN_HELD:
        call.api.services.in_flight.hold(state, plan.bytes)


def _parse_small(call: Call) -> None:
    """Parse the body, unless the codec pool has, and count what the response will take: before a row runs for it."""
    start = time.perf_counter()
    try:
        if call.work is None:
            _parse(call)
        if call.work.plan is not None:
            _hold_plan(call)
    except Exception as exc:
        call.fail(exc)
    call.api.spend("decode", time.perf_counter() - start)


def _decode(decode: Callable[[Sequence[Any]], Sequence[Any]], calls: list[Call]) -> None:
    try:
        decoded = decode([call.work for call in calls])
    except Exception as exc:
        _each_alone(partial(_decode, decode), calls, exc)
        return
    for call, inputs in zip(calls, decoded, strict=True):
        if isinstance(inputs, Exception):
            call.fail(inputs)
        else:
            call.inputs = inputs


def _respond_to(endpoint: Endpoint, calls: list[Call]) -> None:
    try:
        contents = endpoint.encode([call.ended() for call in calls])
    except Exception as exc:
        _each_alone(partial(_respond_to, endpoint), calls, exc)
        return
    try:
        responses = endpoint.respond([(call.work, content) for call, content in zip(calls, contents, strict=True)])
    except Exception as exc:  # not again: the rows are counted
        for call in calls:
            call.fail(exc)
        return
    for call, response in zip(calls, responses, strict=True):
        call.response = response


def _each_alone(stage: Callable[[list[Call]], None], calls: list[Call], exc: Exception) -> None:
    """After a stage has raised: the error of one request, such as its deadline, must not end the others."""
    if len(calls) == 1:
        calls[0].fail(exc)
        return
    for call in calls:
        stage([call])


async def _send(response: ResponseParts, send: Send) -> None:
    """Send piece after piece, as fast as the client reads; joining pieces would copy up to 60 MB on the event loop."""
    headers, pieces, media_type = response
    raw = [(field_name(name), value.encode("latin-1")) for name, value in headers.items()]
    raw += ((b"content-length", b"%d" % sum(map(len, pieces))), (b"content-type", media_type.encode("ascii")))
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})


def _grouped(items: Sequence[Item], key: Callable[[Item], Key]) -> Iterable[tuple[Key, list[Item]]]:
    """The items by their key, in order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.items()


class DisconnectSweep:
    """Watches the requests that last longer than a quarter of a second. Belongs to one event loop.

    ASGI reports a disconnect only to a task that waits in `receive`. A request enters a `DisconnectWatch` block, which
    costs next to nothing; one timer for all blocks starts a task for each block that has become old.
    """

    def __init__(self) -> None:
        self._young: dict[DisconnectWatch, float] = {}  # in the order of their beginning
        self._timer: asyncio.TimerHandle | None = None

    def add(self, block: "DisconnectWatch", loop: asyncio.AbstractEventLoop) -> None:
        """Start ``block`` when it has become old."""
        self._young[block] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_GRACE_S, self._sweep, loop)

    def remove(self, block: "DisconnectWatch") -> None:
        """Forget a block that has ended."""
        self._young.pop(block, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        latest = loop.time() - _GRACE_S
        for block in [block for block, since in self._young.items() if since <= latest]:
            del self._young[block]
            block.start(loop)
        self._timer = loop.call_later(_GRACE_S, self._sweep, loop) if self._young else None


class DisconnectWatch:
    """A block that ends with `ClientDisconnect` when the client disconnects.

    Use it after the body was read: it consumes every further message of ``receive``. A cancellation by somebody else
    stays a `CancelledError`. If ``receive`` raises, so does the block.
    """

    __slots__ = ("_cancel_requests", "_failure", "_receive", "_sweep", "_task", "_watching")

    def __init__(self, sweep: DisconnectSweep, receive: Receive) -> None:
        self._sweep, self._receive = sweep, receive
        self._task: asyncio.Task[object] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None  # once this block has cancelled its task

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        self._cancel_requests = task.cancelling() if task else 0  # those before this block
        self._sweep.add(self, loop)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        task, self._task = self._task, None  # breaks the cycles of this object and its tasks
        if self._watching is None:
            self._sweep.remove(self)
            return
        watching, self._watching = self._watching, None
        if self._failure is None or task is None:
            watching.cancel()
        # `uncancel` takes back this block's request, as `asyncio.timeout` does. Those of others must reach them.
        elif task.uncancel() <= self._cancel_requests and isinstance(exc, asyncio.CancelledError):
            raise self._failure from None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch."""
        self._watching = loop.create_task(self._wait())

    async def _wait(self) -> None:
        failure: Exception = ClientDisconnect()
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as exc:  # after a failure of the channel nobody can receive the response
            failure = exc
        if self._task is not None:
            self._failure = failure
            self._task.cancel()
