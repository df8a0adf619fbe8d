"""What endpoints use of a scheduler, whether it runs in this process or in the engine's."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import numpy as np

from service.domain.errors import DeadlineExceeded, IgnError
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress

Event = StepOutput | StreamProgress | Result | IgnError
Deliver = Callable[[Event], None]
"""Receives the end of a request or, of a stream, every event; called on the event loop. The last event is a `Result`
or an error."""
Handle = TypeVar("Handle")


class RowScheduler(ABC, Generic[Handle]):
    """Applies one model to the rows of many requests at a time. Belongs to one event loop, unless a method says more.

    An implementation has :meth:`begin` and :meth:`cancel`; callers use :meth:`submit` and :meth:`stream`.
    """

    _reserved = 0  # rows that are being made in the blocks of `room_for`

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether it can serve now."""

    @property
    @abstractmethod
    def all_devices_lost(self) -> bool:
        """Whether the last device is lost. Only a new process can use the model again."""

    @property
    @abstractmethod
    def device_error(self) -> str:
        """Why the latest device was lost, in one line for the operator; empty if none was."""

    @property
    @abstractmethod
    def rows_queued(self) -> int:
        """Rows admitted, unfinished and in no batch."""

    @abstractmethod
    def start(self) -> None:
        """Make it serve. May be called once."""

    @abstractmethod
    def close(self, seconds: float = 5.0) -> None:
        """Fail the open requests with `Draining`, and wait at most ``seconds`` for what runs."""

    @abstractmethod
    async def check_capacity(self, rows: int) -> None:
        """Refuse now what :meth:`submit` would refuse for its number of rows.

        Raises:
            QueueFull: too many rows would wait.
            NotReady: not started, a worker is being replaced, or no device is left.
            Draining: closed.
        """

    def refusal(self, rows: int) -> IgnError | None:
        """Why :meth:`room_for` would refuse now, as far as this process knows; changes and counts nothing."""
        return None

    def count_refusal(self, error: IgnError) -> None:
        """Count a request that a caller has refused because of :meth:`refusal`."""
        return

    @asynccontextmanager
    async def room_for(self, rows: int, deadline: float) -> AsyncIterator[None]:
        """Reserve room for rows while the block makes them; submit them directly after it.

        For rows that are expensive to make, such as those of large pictures. Without the reservation, every request
        that arrives meanwhile would find the same room, and most of them would be refused after their rows were made.

        Args:
            rows: their number.
            deadline: monotonic time until which the answer may come.

        Raises:
            QueueFull, NotReady, Draining: as :meth:`check_capacity`.
            DeadlineExceeded: no answer until the deadline.
        """
        self._reserved += rows
        try:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self.check_capacity(self._reserved)
            except TimeoutError as exc:
                raise DeadlineExceeded("the deadline passed before the queue had room") from exc
            yield
        finally:
            self._reserved -= rows

    @abstractmethod
    def begin(self, rows: FloatRows, params: SchedulingParams, deliver: Deliver, *, streamed: bool) -> Handle:
        """Admit a request, and call ``deliver`` later: once, or for every event if it is ``streamed``.

        Returns:
            What :meth:`cancel` takes.

        Raises:
            IgnError, ValueError: as :meth:`submit`. Then ``deliver`` is never called.
        """

    def begin_many(
        self,
        calls: Sequence[tuple[FloatRows, SchedulingParams]],
        deliver: Callable[[list[tuple[Handle, Event]]], None],
    ) -> list[Handle | IgnError]:
        """Admit several requests of one turn of the event loop.

        Args:
            calls: rows and parameters of each.
            deliver: called on the event loop with requests that ended together, and the result or error of each.

        Returns:
            For each request its handle, or the error with which it was refused.
        """
        begun: list[Handle | IgnError] = []
        for rows, params in calls:
            mine: list[Handle] = []

            def deliver_one(event: Event, mine: list[Handle] = mine) -> None:
                deliver([(mine[0], event)])

            try:
                mine.append(self.begin(rows, params, deliver_one, streamed=False))
                begun.append(mine[0])
            except IgnError as exc:
                begun.append(exc)
        return begun

    @abstractmethod
    def cancel(self, handle: Handle) -> None:
        """End a request whose caller has gone; nothing is delivered any more. Does nothing after its last event."""

    async def submit(self, rows: FloatRows, params: SchedulingParams) -> Result:
        """Run rows (N, C, H, W) float32 to their end. They must not be changed meanwhile.

        Cancelling the call removes waiting rows from the queue; rows in a batch leave it after the current step.

        Raises:
            QueueFull, WouldMissDeadline, DeadlineUnreachable: refused by `service.scheduling.admission`.
            DeadlineExceeded: the deadline passed; rows still in the queue were not run.
            ModelFailure: the model raised, or gave values that are not finite, on one of the rows.
            NotReady, Draining: as :meth:`check_capacity`.
            ValueError: rows or mask do not fit the model.
        """
        end: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

        def deliver(event: Event) -> None:
            if not end.done():  # done: the caller is being cancelled
                end.set_result(event)

        handle = self.begin(rows, params, deliver, streamed=False)
        try:
            event = await end
        finally:
            self.cancel(handle)
        if isinstance(event, IgnError):
            raise event
        assert isinstance(event, Result)  # noqa: S101 - without `streamed` there is no other event
        return event

    async def stream(
        self, rows: FloatRows, params: SchedulingParams
    ) -> AsyncGenerator[StepOutput | StreamProgress | Result, None]:
        """As :meth:`submit`, but yield events as soon as they exist; the `Result` comes last.

        Yields every recorded step of every row, and the last step of every row whether recorded or not. The
        deadline bounds the wait for the first event only. Closing the generator cancels the request.
        """
        events = asyncio.Queue[Event]()
        handle = self.begin(rows, params, events.put_nowait, streamed=True)
        try:
            while True:
                event = await events.get()
                if isinstance(event, IgnError):
                    raise event
                yield event
                if isinstance(event, Result):
                    return
        finally:
            self.cancel(handle)


def check_rows(rows: FloatRows, params: SchedulingParams, shape: tuple[int, int, int]) -> None:
    """Raise `ValueError` unless rows and mask fit a model with rows of this shape."""
    n, (channels, height, width) = len(rows), shape
    if n < 1 or rows.shape[1:] != shape or rows.dtype != np.float32:
        raise ValueError(f"rows must be float32 (N ≥ 1, {channels}, {height}, {width})")
    mask = params.keep_mask
    if mask is None:
        return
    if mask.shape not in [(n, c, height, width) for c in (1, channels)] or mask.dtype != np.bool_:
        raise ValueError(f"keep_mask must be bool ({n}, 1 or {channels}, {height}, {width})")
