"""A front end's models: those of the engine's process, as that has announced them."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from service.domain.errors import Draining, NotReady
from service.engine.connection import GONE, EngineConnection
from service.engine.links import LinkReceiver
from service.engine.messages import Models, Operation
from service.engine.remote import RemoteScheduler, RemoteStatistics
from service.engine.slots import SlotFiles
from service.models.registry import IndexEntry, Registry, ServedModel


class RemoteRegistry(Registry):
    """The models of an engine in another process, which may end and be replaced by a new one.

    Args:
        default: `name` or `name/version` for requests that name no model.
        control: receives the links to the engine.
        on_serving: called with True when an engine serves, and with False when it has gone.
        wait_for_requests: returns when every request in flight at the time of the call has ended.
    """

    def __init__(
        self,
        default: str,
        control: socket.socket,
        *,
        on_serving: Callable[[bool], None],
        wait_for_requests: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(default)
        self._control = control
        self._links: LinkReceiver | None = None
        self._on_serving, self._wait_for_requests = on_serving, wait_for_requests
        self._connection: EngineConnection | None = None
        self._numbers: dict[int, ServedModel] = {}
        self._has_served = asyncio.Event()

    async def open(self) -> None:
        """Return when an engine serves."""
        self._links = LinkReceiver(self._control, self._connect)
        await self._has_served.wait()

    def rows_queued(self) -> dict[str, int]:
        """Nothing: rows wait in the engine, which counts them."""
        return {}

    async def load(self, name: str) -> None:
        """Load a model in the engine, for every front end."""
        await self._call("load", name)

    async def unload(self, name: str) -> None:
        """Unload a model in the engine, for every front end."""
        await self._call("unload", name)

    async def index(self) -> list[IndexEntry]:
        """Every version that serves or lies in the directory."""
        entries: list[IndexEntry] = await self._call("index")
        return entries

    def abort_all(self) -> None:
        """Fail every request of this process with `Draining`."""
        if self._connection is not None:
            self._connection.fail_all(lambda: Draining("the service is shutting down"))

    async def close(self) -> None:
        """End the link to the engine."""
        if self._links is not None:
            self._links.close()
        if self._connection is not None:
            self._connection.close()

    async def _connect(self, link: socket.socket, files: SlotFiles) -> None:
        previous = self._connection
        connection = self._connection = EngineConnection(
            files,
            on_models=self._on_models,
            on_lost=self._on_lost,
            finish=self._wait_for_requests,
        )
        self._numbers = {}  # each engine has numbers of its own
        if previous is not None:
            previous.close()
        await connection.open(link)

    async def _call(self, operation: Operation, argument: Any = None) -> Any:
        if self._connection is None:
            raise NotReady(GONE)
        return await self._connection.call(operation, argument=argument)

    def _on_models(self, connection: EngineConnection, models: Models) -> None:
        if connection is not self._connection:
            return
        numbers = {}
        for number, loaded in models.served.items():
            numbers[number] = self._numbers.get(number) or ServedModel(
                loaded,
                RemoteScheduler(connection, number, loaded.card.shape),
                RemoteStatistics(connection, number),
            )
        self._numbers = numbers
        self._set_models({model.ref: model for model in numbers.values()})
        self.failures = dict(models.failures)
        self._has_served.set()
        self._on_serving(True)

    def _on_lost(self, connection: EngineConnection) -> None:
        if connection is self._connection:
            self._on_serving(False)
