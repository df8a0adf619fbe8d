"""The engine's end of its links to front ends: rows and messages go to the schedulers, events go back.

Belongs to the event loop of the engine's process. A front end that dies closes its socket. Then its requests are
cancelled, and its memory is unmapped with the last of them.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import pickle
import socket
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from service.domain.errors import IgnError, NotReady
from service.domain.tasks import Result, SchedulingParams, StepParams
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
    State,
    TensorTimes,
)
from service.engine.slots import CANCEL, DATA_BYTES, Segment, SlotFiles, entry, use_of
from service.models.registry import Registry, ServedModel
from service.models.repository import close_nothing
from service.scheduling.interface import Event, RowScheduler

_LOG = logging.getLogger("service")
STATE_S: Final = 0.5
"""Seconds between two messages `State`."""
_STUCK_S: Final = 10.0
"""How long a front end that does not answer, such as a stopped process, delays an operation of another one."""
_GONE: Final = "the model is not ready"

Scheduler = RowScheduler[Any]


class EngineHost:
    """The models of this process, and the front ends that use them."""

    def __init__(self) -> None:
        self._registry: Registry | None = None
        self._fronts: set[_Front] = set()
        self._numbers = itertools.count(1)
        self._number_of: dict[ServedModel, int] = {}
        self._models: WeakValueDictionary[int, ServedModel] = WeakValueDictionary()
        self._waiting: dict[int, tuple[_Front, asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def fronts(self) -> int:
        """How many front ends are connected."""
        return len(self._fronts)

    def open(self, registry: Registry) -> None:
        """Serve these models from now on; they are loaded."""
        self._registry = registry
        self.run(self.publish())
        self.run(self._keep_telling())

    async def add(self, link: socket.socket, files: SlotFiles) -> None:
        """Serve one more front end. The descriptors belong to the host from now on."""
        loop = asyncio.get_running_loop()
        front = _Front(self, files)
        loop.add_reader(files.submitted, front.on_submitted)
        await loop.create_connection(lambda: front.stream, sock=link)
        if front.is_lost:
            return
        self._fronts.add(front)  # not before it is connected: the others would wait for its answer
        self._empty.clear()
        if self._registry is not None:
            await self._tell_models([front])

    def remove(self, front: "_Front") -> None:
        """A front end has gone."""
        self._fronts.discard(front)
        for asked, answered in list(self._waiting.values()):
            if asked is front and not answered.done():
                answered.set_result(None)
        if not self._fronts:
            self._empty.set()

    async def wait_until_alone(self) -> None:
        """Wait until no front end is connected."""
        await self._empty.wait()

    async def wait_for_requests(self) -> None:
        """Wait until every request in flight in a front end at the time of the call has ended."""
        await self.publish()
        await self._ask(list(self._fronts), Finish, seconds=None)

    async def publish(self) -> None:
        """Tell every front end which models serve, and wait until all know that do not hang."""
        await self._tell_models(list(self._fronts))

    def model(self, number: int) -> ServedModel:
        """The model with a number that a front end got.

        Raises:
            NotReady: it is closed.
        """
        model = self._models.get(number)
        if model is None:
            raise NotReady(_GONE)
        return model

    async def call(self, call: Call) -> Any:
        """Run an operation for a front end.

        Raises:
            IgnError: as the method that is called.
        """
        registry = self._registry
        if registry is None:
            raise NotReady("models are being loaded")
        match call.operation:
            case "check_capacity":
                await self.model(call.model).scheduler.check_capacity(call.argument)
            case "statistics":
                return await self.model(call.model).statistics.read()
            case "index":
                return await registry.index()
            case "load" | "unload":
                try:
                    await (registry.load if call.operation == "load" else registry.unload)(call.argument)
                finally:
                    await self.publish()
        return None

    def on_done(self, number: int) -> None:
        """A front end has done what it was asked for."""
        front_and_future = self._waiting.get(number)
        if front_and_future is not None and not front_and_future[1].done():
            front_and_future[1].set_result(None)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work in a task of its own."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Disconnect every front end."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for front in list(self._fronts):
            front.stream.close()

    async def _ask(self, fronts: "list[_Front]", message: Callable[[int], Message], *, seconds: float | None) -> None:
        """Send a message to front ends, and wait until each has answered `Done` or has gone, but at most so long."""
        loop = asyncio.get_running_loop()
        numbers = []
        for front in self._fronts.intersection(fronts):  # one may have gone since
            number = next(self._numbers)
            numbers.append(number)
            self._waiting[number] = front, loop.create_future()
            front.stream.send(message(number))
        try:
            if numbers:
                await asyncio.wait([self._waiting[number][1] for number in numbers], timeout=seconds)
        finally:
            for number in numbers:
                del self._waiting[number]

    def _catalogue(self) -> Callable[[int], Message]:
        registry = self._registry
        if registry is None:
            return partial(Models, served={}, failures={})
        numbers = {}
        for model in registry.models.values():
            number = self._number_of.get(model) or next(self._numbers)
            self._models[number], numbers[model] = model, number
        self._number_of = numbers
        served = {number: replace(model.loaded, instances=(), close=close_nothing) for model, number in numbers.items()}
        return partial(Models, served=served, failures=dict(registry.failures))

    async def _tell_models(self, fronts: "list[_Front]") -> None:
        catalogue = self._catalogue()
        self._tell_state(fronts)  # first, so that a model that is known is known to be healthy
        await self._ask(fronts, catalogue, seconds=_STUCK_S)

    def _tell_state(self, fronts: "Iterable[_Front]") -> None:
        """Of all models, those that no longer serve included: a front end may not know that yet."""
        states = {
            number: ModelState(
                healthy=model.scheduler.healthy,
                all_devices_lost=model.scheduler.all_devices_lost,
                device_error=model.scheduler.device_error,
            )
            for number, model in self._models.items()
        }
        for front in fronts:
            front.stream.send(State(states))

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(STATE_S)
            self._tell_state(self._fronts)


class _Use(NamedTuple):
    """One use of a slot, whose rows a scheduler has."""

    generation: int
    scheduler: Scheduler
    handle: Any


class _Front:
    """One front end, until its socket closes."""

    def __init__(self, host: EngineHost, files: SlotFiles) -> None:
        self._host, self._files = host, files
        self._segment = Segment(files)
        self.stream = MessageStream(self._on_message, self._on_lost)
        self._uses: dict[int, _Use] = {}  # by slot
        self._slot_of: dict[Any, int] = {}  # by handle
        self._requests: dict[int, tuple[Scheduler, Any]] = {}  # of `Begin`
        self._completed: list[int] = []
        self.is_lost = False

    def on_submitted(self) -> None:
        """Begin and cancel what the ring says."""
        slots: list[int] = []
        for one in self._segment.submitted.take():
            slot, generation = use_of(one)
            if one & CANCEL:  # of a use that may be among those before it
                self._begin_slots(slots)
                slots = []
                self._cancel_slot(slot, generation)
            else:
                slots.append(slot)
        self._begin_slots(slots)

    def _begin_slots(self, slots: list[int]) -> None:
        if not slots:
            return
        segment = self._segment
        deadlines, texts = segment.times[slots, 0].tolist(), segment.read_texts(slots)
        groups: dict[tuple[int, int], list[tuple[int, int, SchedulingParams]]] = {}  # by model and number of rows
        for slot, head, deadline, text in zip(slots, segment.heads[slots].tolist(), deadlines, texts, strict=True):
            generation, model_number, count, steps, score, key_bytes, id_bytes, _ = head
            params = SchedulingParams(
                step_params=_step_params(steps, bool(score)),
                deadline=None if deadline == math.inf else deadline,
                key=_decoded(text[:key_bytes]),
                request_id=text[key_bytes : key_bytes + id_bytes].decode(),
            )
            groups.setdefault((model_number, count), []).append((slot, generation, params))
        for (number, count), group in groups.items():
            try:
                model = self._host.model(number)
                rows = segment.read_rows([slot for slot, *_ in group], count, model.card.shape)
                calls = [(mine, params) for mine, (_, _, params) in zip(rows, group, strict=True)]
                begun = model.scheduler.begin_many(calls, self._end_uses)
            except Exception as exc:
                begun = [_failure(exc)] * len(group)
            for (slot, generation, _), handle in zip(group, begun, strict=True):
                if isinstance(handle, IgnError):
                    self._fail_slot(slot, generation, handle)
                else:
                    self._uses[slot] = _Use(generation, model.scheduler, handle)
                    self._slot_of[handle] = slot

    def _end_uses(self, ended: list[tuple[Any, Event]]) -> None:
        results: dict[tuple[int, ...], list[tuple[int, Result]]] = {}  # by shape
        for handle, event in ended:
            slot = self._slot_of.pop(handle)
            generation = self._uses.pop(slot).generation
            if isinstance(event, Result):
                results.setdefault(event.rows.shape, []).append((slot, event))
                self._complete(entry(slot, generation))
            elif isinstance(event, IgnError):
                self._fail_slot(slot, generation, event)
        for group in results.values():
            self._segment.write_results([slot for slot, _ in group], [result for _, result in group])

    def _fail_slot(self, slot: int, generation: int, error: IgnError) -> None:
        pickled = pickle.dumps(error)
        if len(pickled) > DATA_BYTES:
            pickled = pickle.dumps(IgnError("internal error"))
        self._segment.write_error(slot, pickled)
        self._complete(entry(slot, generation))

    def _cancel_slot(self, slot: int, generation: int) -> None:
        use = self._uses.get(slot)
        if use is None or use.generation != generation:  # it has ended, and its entry is on the way
            return
        del self._uses[slot], self._slot_of[use.handle]
        use.scheduler.cancel(use.handle)
        self._complete(entry(slot, generation))

    def _complete(self, completed: int) -> None:
        if not self._completed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._completed.append(completed)

    def _flush(self) -> None:
        completed, self._completed = self._completed, []
        if not self.is_lost:
            self._segment.completed.put(completed)

    def _on_message(self, message: Message) -> None:
        match message:
            case Begin():
                self._begin(message)
            case Cancel():
                if found := self._requests.pop(message.request, None):
                    found[0].cancel(found[1])
            case Call():
                self._host.run(self._answer(message))
            case TensorTimes():
                with contextlib.suppress(NotReady):
                    self._host.model(message.model).statistics.tensors(message.read_s, message.written_s)
            case Done():
                self._host.on_done(message.number)

    def _begin(self, message: Begin) -> None:
        number = message.request

        def deliver(event: Event) -> None:
            if isinstance(event, Result | IgnError):
                self._requests.pop(number, None)
            self.stream.send(Happened(number, event))

        try:
            scheduler = self._host.model(message.model).scheduler
            handle = scheduler.begin(message.rows, message.params, deliver, streamed=message.streamed)
        except Exception as exc:
            self.stream.send(Happened(number, _failure(exc)))
        else:
            self._requests[number] = scheduler, handle

    async def _answer(self, call: Call) -> None:
        try:
            value = await self._host.call(call)
        except Exception as exc:
            value = _failure(exc)
        self.stream.send(Answer(call.number, value))

    def _on_lost(self) -> None:
        asyncio.get_running_loop().remove_reader(self._files.submitted)
        for scheduler, handle in (*(use[1:] for use in self._uses.values()), *self._requests.values()):
            scheduler.cancel(handle)
        self._uses.clear()
        self._slot_of.clear()
        self._requests.clear()
        self.is_lost = True
        self._files.close()
        self._host.remove(self)


def _failure(exc: Exception) -> IgnError:
    """What a front end gets; one that no scheduler raises on purpose is logged."""
    if isinstance(exc, IgnError):
        return exc
    _LOG.error("a request of a front end failed", exc_info=exc)
    return IgnError("internal error")


_decoded = lru_cache(maxsize=256)(bytes.decode)  # of fairness keys


@lru_cache(maxsize=256)
def _step_params(steps: int, score: bool) -> StepParams:
    return StepParams(steps=steps, score=score)
