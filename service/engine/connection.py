"""A front end's end of its link to one engine process."""

import asyncio
import itertools
import math
import pickle
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from service.domain.errors import DeadlineExceeded, IgnError, NotReady
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams
from service.engine.messages import (
    Answer,
    Begin,
    Call,
    Cancel,
    Done,
    Finish,
    Happened,
    Message,
    MessageStream,
    Models,
    ModelState,
    Operation,
    State,
    TensorTimes,
)
from service.engine.slots import (
    CANCEL,
    DATA_BYTES,
    MAX_ROWS,
    SLOTS,
    TEXT_BYTES,
    Head,
    Segment,
    SlotFiles,
    entry,
    use_of,
)
from service.scheduling.interface import Deliver, Event

DeliverMany = Callable[[list[tuple["RemoteRequest", Event]]], None]
GONE: Final = "the engine is being restarted"
STUCK: Final = "the engine does not respond"
_SWEEP_S: Final = 0.5
_GRACE_S: Final = 2.0
"""Seconds after a deadline in which the engine, which keeps deadlines, must have answered."""
_SILENCE_S: Final = 10.0
"""Seconds without a message `State` after which the engine counts as stuck, and every request fails."""
_NO_STATE: Final = ModelState(healthy=False, all_devices_lost=False, device_error="")


class RemoteRequest:
    """A request whose caller waits."""

    __slots__ = ("deliver", "deliver_many", "expires", "number", "params", "shape", "slot", "submitted")

    def __init__(
        self, number: int, slot: int, shape: tuple[int, ...], params: SchedulingParams, deliver: Deliver
    ) -> None:
        self.number, self.slot, self.shape = number, slot, shape  # slot −1: it went by the socket
        self.params, self.deliver = params, deliver
        self.deliver_many: DeliverMany | None = None  # in place of `deliver`
        self.submitted = time.monotonic()
        self.expires = math.inf if params.deadline is None else params.deadline + _GRACE_S

    def end(self, event: Event) -> None:
        """Deliver the last event, and tell the request's observer."""
        if self.deliver_many is not None:
            self.deliver_many([(self, event)])
        else:
            self.deliver(event)
        self.observe(event)

    def observe(self, event: Event) -> None:
        """Tell the request's observer of the last event."""
        if self.params.observer is not None:
            now = time.monotonic()
            started = now - event.compute_s if isinstance(event, Result) else None
            outcome = event.error_code if isinstance(event, IgnError) else "ok"
            self.params.observer.scheduled(self.submitted, started, now, outcome)


class EngineConnection:
    """One link, from the start of an engine or of this process until one of them ends. Belongs to one event loop.

    Args:
        files: of the shared memory; they belong to the connection from now on.
        on_models: called with this connection when the served models have changed.
        on_lost: called with this connection when the engine has gone.
        finish: returns when every request in flight at the time of the call has ended.
    """

    def __init__(
        self,
        files: SlotFiles,
        *,
        on_models: Callable[["EngineConnection", Models], None],
        on_lost: Callable[["EngineConnection"], None],
        finish: Callable[[], Any],
    ) -> None:
        self._files, self._segment = files, Segment(files)
        self._on_models, self._notify_lost, self._finish = on_models, on_lost, finish
        self._stream = MessageStream(self._on_message, self._on_lost)
        self._free = list(range(SLOTS))
        self._generations = [0] * SLOTS
        self._in_slot: list[RemoteRequest | None] = [None] * SLOTS
        self._by_socket: dict[int, RemoteRequest] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._submitted: list[int] = []
        self._states: dict[int, ModelState] = {}
        self._silence_s = 0.0  # counted by `_sweep`, so that it does not grow while this process itself is stopped
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self.lost = False
        """Whether the engine has gone."""

    async def open(self, link: socket.socket) -> None:
        """Begin; ``link`` is connected to the engine."""
        self._loop = loop = asyncio.get_running_loop()
        loop.add_reader(self._files.completed, self._on_completed)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        await loop.create_connection(lambda: self._stream, sock=link)

    def close(self) -> None:
        """Fail every request, and end the link."""
        self._stream.close()

    def state(self, model: int) -> ModelState:
        """What the engine said last of a model."""
        return self._states.get(model, _NO_STATE)

    @property
    def silent(self) -> bool:
        """Whether the engine has gone, or has said nothing for so long that it must be stuck."""
        return self.lost or self._silence_s >= _SILENCE_S

    def begin(
        self, model: int, rows: FloatRows, params: SchedulingParams, deliver: Deliver, *, streamed: bool
    ) -> RemoteRequest:
        """Send rows to a model: in a slot if they fit one, else by the socket.

        Raises:
            NotReady: the engine has gone, or is stuck.
        """
        if self.silent:
            raise NotReady(GONE if self.lost else STUCK)
        step_params = params.step_params
        text = params.key.encode(), params.request_id.encode()
        if (
            self._free
            and not streamed
            and params.keep_mask is None
            and step_params.tolerance is None
            and not step_params.record
            and len(rows) <= MAX_ROWS
            and rows.nbytes <= DATA_BYTES
            and len(text[0]) + len(text[1]) <= TEXT_BYTES
        ):
            return self._begin_in_slot(model, rows, params, deliver, text)
        number = next(self._numbers)
        request = self._by_socket[number] = RemoteRequest(number, -1, rows.shape, params, deliver)
        self._stream.send(Begin(number, model, rows, replace(params, observer=None), streamed))
        return request

    def _begin_in_slot(
        self, model: int, rows: FloatRows, params: SchedulingParams, deliver: Deliver, text: tuple[bytes, bytes]
    ) -> RemoteRequest:
        segment, slot, count = self._segment, self._free.pop(), len(rows)
        generation = self._generations[slot] = self._generations[slot] + 1
        request = self._in_slot[slot] = RemoteRequest(generation, slot, rows.shape, params, deliver)
        segment.rows(slot, count, rows.shape[1:])[...] = rows
        segment.write_text(slot, b"".join(text))
        step_params = params.step_params
        key_bytes, id_bytes = map(len, text)
        segment.heads[slot] = Head(
            generation, model, count, step_params.steps, step_params.score, key_bytes, id_bytes, 0
        )
        segment.times[slot, 0] = math.inf if params.deadline is None else params.deadline
        self._put(entry(slot, generation))
        return request

    def cancel(self, request: RemoteRequest) -> None:
        """Nobody waits for this request any more. Its slot stays the engine's until that says so."""
        if not self._forget(request):
            return
        if request.params.observer is not None:
            request.params.observer.scheduled(request.submitted, None, time.monotonic(), "cancelled")

    def fail_all(self, make_error: Callable[[], IgnError]) -> None:
        """End every request with an error, here and in the engine."""
        self._fail(self._open(), make_error)

    async def call(self, operation: Operation, model: int = 0, argument: Any = None) -> Any:
        """Run an operation in the engine.

        Raises:
            NotReady: the engine has gone, or goes or gets stuck before it answers.
            IgnError: as the operation.
        """
        if self.silent:
            raise NotReady(GONE if self.lost else STUCK)
        number = next(self._numbers)
        answer = self._calls[number] = self._loop.create_future()
        self._stream.send(Call(number, operation, model, argument))
        try:
            value = await answer
        finally:
            del self._calls[number]
        if isinstance(value, Exception):
            raise value
        return value

    def tensors(self, model: int, read_s: float, written_s: float) -> None:
        """See `ModelStatistics.tensors`."""
        self._stream.send(TensorTimes(model, read_s, written_s))

    def _put(self, ring_entry: int) -> None:
        if not self._submitted:
            self._loop.call_soon(self._flush)
        self._submitted.append(ring_entry)

    def _flush(self) -> None:
        """Give the engine all requests of this turn of the event loop, and wake it once."""
        submitted, self._submitted = self._submitted, []
        if not self.lost:
            self._segment.submitted.put(submitted)

    def _open(self) -> list[RemoteRequest]:
        return [*(request for request in self._in_slot if request is not None), *self._by_socket.values()]

    def _fail(self, requests: list[RemoteRequest], make_error: Callable[[], IgnError]) -> None:
        for request in requests:
            self._forget(request)
        for request in requests:
            request.end(make_error())

    def _forget(self, request: RemoteRequest) -> bool:
        """Deliver no more events of a request, and cancel it in the engine; False if it has ended."""
        if request.slot < 0:
            if self._by_socket.pop(request.number, None) is None:
                return False
            self._stream.send(Cancel(request.number))
        else:
            if self._in_slot[request.slot] is not request:
                return False
            self._in_slot[request.slot] = None
            self._put(entry(request.slot, request.number) | CANCEL)
        return True

    def _on_completed(self) -> None:
        groups: dict[tuple[int, ...], list[RemoteRequest]] = {}  # by shape
        for one in self._segment.completed.take():
            slot, generation = use_of(one)
            request, self._in_slot[slot] = self._in_slot[slot], None
            if request is None or request.number != generation:  # its caller has gone
                self._free.append(slot)
            else:
                groups.setdefault(request.shape, []).append(request)
        together: dict[DeliverMany, list[tuple[RemoteRequest, Event]]] = {}
        for shape, requests in groups.items():
            events = self._events(shape, [request.slot for request in requests])
            self._free += [request.slot for request in requests]
            for request, event in zip(requests, events, strict=True):
                if request.deliver_many is None:
                    request.end(event)
                else:
                    together.setdefault(request.deliver_many, []).append((request, event))
                    request.observe(event)
        for deliver_many, ended in together.items():
            deliver_many(ended)

    def _events(self, shape: tuple[int, ...], slots: list[int]) -> list[Event]:
        """What the engine has written into slots with rows of the same shape."""
        segment, (count, *shape_of_row) = self._segment, shape
        heads, times, measures = segment.heads[slots].tolist(), segment.times[slots].tolist(), segment.measures[slots]
        rows = segment.read_rows(slots, count, tuple(shape_of_row), copy=True)
        events = list[Event]()
        for slot, (*_, steps, score, _, _, error_bytes), (_, queue_s, compute_s), measured, mine in zip(
            slots, heads, times, measures, rows, strict=True
        ):
            if error_bytes:
                events.append(pickle.loads(segment.read_error(slot, error_bytes)))  # noqa: S301 - from our own process
                continue
            events.append(
                Result(
                    rows=mine,
                    steps=np.full(count, steps, np.int64),
                    converged=np.zeros(count, np.bool_),
                    distance=measured[0, :count],
                    drift=measured[1, :count] if score else None,
                    trajectory=[[] for _ in range(count)],
                    queue_s=queue_s,
                    compute_s=compute_s,
                )
            )
        return events

    def _on_message(self, message: Message) -> None:
        match message:
            case Happened(number, event):
                self._on_event(number, event)
            case Answer(number, value):
                if (answer := self._calls.get(number)) and not answer.done():
                    answer.set_result(value)
            case State(states):
                self._states, self._silence_s = dict(states), 0.0
            case Models(number):
                self._on_models(self, message)
                self._stream.send(Done(number))
            case Finish(number):
                task = self._loop.create_task(self._finish_current(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _on_event(self, number: int, event: Event) -> None:
        request = self._by_socket.get(number)
        if request is None:  # its caller has gone
            return
        if isinstance(event, Result | IgnError):
            del self._by_socket[number]
            request.end(event)
        else:
            request.expires = math.inf  # a stream's deadline bounds the wait for its first event only
            request.deliver(event)

    async def _finish_current(self, number: int) -> None:
        await self._finish()
        self._stream.send(Done(number))

    def _sweep(self) -> None:
        """Fail the requests that a stuck engine has left waiting."""
        now = time.monotonic()
        overdue = [request for request in self._open() if request.expires < now]
        self._fail(overdue, lambda: DeadlineExceeded("the deadline passed"))
        if self.silent:
            self.fail_all(lambda: NotReady(STUCK))
            self._fail_calls(STUCK)
        self._silence_s += _SWEEP_S
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _on_lost(self) -> None:
        self.lost = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._loop.remove_reader(self._files.completed)
        self._files.close()
        self._notify_lost(self)
        self._fail_calls(GONE)
        self.fail_all(lambda: NotReady(GONE))

    def _fail_calls(self, reason: str) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_result(NotReady(reason))
