"""An engine in a thread of this process, for tests of front ends."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.api.app_state import AppState
from service.app import build_services, close_services, load_models
from service.engine.engine_host import EngineHost
from service.engine.links import LinkReceiver, control_pair, link
from service.settings import Settings


class EngineThread:
    """An engine; `stop` ends it as its death would: front ends see that the link closes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.control, self._theirs = control_pair()
        self.host: EngineHost
        self.services: AppState
        self.loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="engine of a test")

    def start(self) -> None:
        """Start it; its models are not loaded yet."""
        self._thread.start()
        assert self._started.wait(30)

    def stop(self) -> None:
        """Stop it; does nothing the second time."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(30)
        self.control.close()

    async def _run(self) -> None:
        self.loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self.host = EngineHost()
        self.services = build_services(self._settings, wait_for_requests=self.host.wait_for_requests)
        links = LinkReceiver(self._theirs, self.host.add)
        self._started.set()
        try:
            await load_models(self.services)
            self.host.open(self.services.registry)
            await self._stopping.wait()
        finally:
            links.close()
            await self.host.close()
            await close_services(self.services)
            self._theirs.close()


@contextmanager
def engine_thread(settings: Settings) -> Iterator[tuple[EngineThread, socket.socket]]:
    """An engine that loads its models, and the control socket of a front end that is linked to it."""
    engine = EngineThread(settings)
    ours, theirs = control_pair()
    engine.start()
    try:
        link(ours, engine.control)
        with ours, theirs:
            yield engine, theirs
    finally:
        engine.stop()
