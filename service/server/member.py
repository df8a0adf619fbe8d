"""A serving process that is one of several: it does what its parent says."""

import asyncio
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection

from service.api.app_state import AppState
from service.domain.errors import StartupError
from service.server.sockets import begin
from service.server.supervisor import LISTENING, say
from service.server.uvicorn_server import Config, IgnServer


class Member(IgnServer):
    """Listens when the parent says so, which it does once, and leaves when the parent is gone.

    Args:
        config: uvicorn's.
        found: the app's services.
        parent: where the parent says so; it reads end-of-file when the parent is gone, however it went.
        refuse: called when another program listens on the port by then.
    """

    def __init__(
        self, config: Config, found: AppState, parent: Connection, refuse: Callable[[StartupError], None]
    ) -> None:
        super().__init__(config, found)
        self._parent = parent
        self._refuse = refuse
        self._bound: list[socket.socket] = []
        self._opening: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin without the sockets: they wait for the parent's word."""
        await super().startup(sockets=[])
        self._bound = sockets or []
        asyncio.get_running_loop().add_reader(self._parent.fileno(), self._hear)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hear no more, and leave."""
        self._turn_away()
        if self._opening is not None:
            self._opening.cancel()
        await super().shutdown(sockets)

    def _hear(self) -> None:
        try:
            self._parent.recv_bytes()
        except (EOFError, OSError):
            self._turn_away()
            if self._draining is None:
                self._stop()
            return
        if self._draining is None and not self.should_exit:
            self._open()

    def _open(self) -> None:
        try:
            begin(self._bound[0], self._services.settings)  # the others are the same socket
        except StartupError as exc:
            self._refuse(exc)
            return
        self._opening = asyncio.get_running_loop().create_task(self.accept(self._bound))
        say(self._parent, LISTENING)

    def _turn_away(self) -> None:
        asyncio.get_running_loop().remove_reader(self._parent.fileno())
