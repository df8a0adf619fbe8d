"""Messages between a front end and the engine: pickles behind their length, on a Unix socket that the supervisor made.

Only these processes have the socket, so unpickling is safe. Streams, masks, trajectories, tolerances, requests that fit
no slot, calls of the model repository and statistics go this way.
"""

import asyncio
import logging
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from service.domain.latents import FloatRows
from service.domain.tasks import SchedulingParams
from service.models.repository import LoadedModel
from service.scheduling.interface import Event

Operation = Literal["check_capacity", "load", "unload", "index", "statistics"]
_LENGTH: Final = struct.Struct("<Q")
_LOG = logging.getLogger("service")


@dataclass(frozen=True, slots=True)
class Begin:
    """Front end → engine: run rows. ``model`` is the number in `Models`."""

    request: int
    model: int
    rows: FloatRows
    params: SchedulingParams
    streamed: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Front end → engine: nobody waits for this request of `Begin`."""

    request: int


@dataclass(frozen=True, slots=True)
class Call:
    """Front end → engine: an operation that gets an `Answer`."""

    number: int
    operation: Operation
    model: int = 0
    argument: Any = None


@dataclass(frozen=True, slots=True)
class TensorTimes:
    """Front end → engine: `ModelStatistics.tensors`."""

    model: int
    read_s: float
    written_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """Front end → engine: what a message with this number asked for is done."""

    number: int


@dataclass(frozen=True, slots=True)
class Happened:
    """Engine → front end: an event of a request of `Begin`."""

    request: int
    event: Event


@dataclass(frozen=True, slots=True)
class Answer:
    """Engine → front end: the result of a `Call`."""

    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Models:
    """Engine → front end: what serves from now on; answer `Done`. The engine gives every model a number of its own."""

    number: int
    served: Mapping[int, LoadedModel]
    failures: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Finish:
    """Engine → front end: answer `Done` when every request in flight now has ended."""

    number: int


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a scheduler says of itself, see `RowScheduler`."""

    healthy: bool
    all_devices_lost: bool
    device_error: str


@dataclass(frozen=True, slots=True)
class State:
    """Engine → front end, several times a second: the state of every model that serves."""

    models: Mapping[int, ModelState]


Message = Begin | Cancel | Call | TensorTimes | Done | Happened | Answer | Models | Finish | State


class MessageStream(asyncio.Protocol):
    """One end of the socket.

    Args:
        on_message: receives every message of the other end.
        on_lost: called once, when the other end has closed the socket or its process has ended.
    """

    def __init__(self, on_message: Callable[[Message], None], on_lost: Callable[[], None]) -> None:
        self._on_message, self._on_lost = on_message, on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._unsent: list[bytes] | None = []  # until the connection is made; None afterwards
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.WriteTransport, transport)
        unsent, self._unsent = self._unsent, None
        self._transport.writelines(unsent or [])

    def data_received(self, data: bytes) -> None:
        """Pass on the messages that are complete. One that cannot be handled is logged, and the connection stays."""
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(received, start)
            end = start + _LENGTH.size + size
            if len(received) < end:
                break
            body = bytes(received[start + _LENGTH.size : end])
            start = end
            try:
                self._on_message(pickle.loads(body))  # noqa: S301 - from our own process
            except Exception:
                _LOG.exception("a message of another process failed")
        del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        # The handlers refer to their owner, which holds this: without the cycle, its memory is unmapped at once.
        on_lost, self._on_lost, self._on_message = self._on_lost, _no_loss, _no_message
        self._transport = None
        on_lost()

    def send(self, message: Message) -> None:
        """Send a message, or keep it until the connection is made; after its end, nothing happens."""
        if self._transport is None and self._unsent is None:
            return
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        for part in (_LENGTH.pack(len(data)), data):
            if self._transport is not None:
                self._transport.write(part)
            elif self._unsent is not None:
                self._unsent.append(part)

    def close(self) -> None:
        """Send what waits, and end the connection."""
        if self._transport is not None:
            self._transport.close()


def _no_message(message: Message) -> None:
    pass


def _no_loss() -> None:
    pass
