import asyncio
import errno
import fcntl
import math
import os
import resource
import socket
import termios
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.observability.metrics import Metrics
from service.server import open_connections
from service.server.open_connections import OpenConnections
from service.settings import Settings
from tests.helpers.connection import PATIENCE_S
from tests.helpers.serving import Clock
from tests.helpers.timed_loop import run_timed


class Open:
    """A connection with a request, and its transport."""

    def __init__(self, connections: OpenConnections) -> None:
        self.transport = self
        self.info: dict[str, Any] = {"peername": ("192.0.2.1", 1)}
        self.is_closed = False
        self.unread_since = -math.inf
        self.unsent: Callable[[], int] = lambda: 0
        connections.add(cast(Any, self))
        connections.on_busy(cast(Any, self))

    def abort(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return self.unsent()

    def get_extra_info(self, name: str) -> Any:
        return self.info[name]


def limited(metrics: Metrics, clock: Any = time.monotonic) -> OpenConnections:
    services: Any = SimpleNamespace(metrics=metrics, settings=Settings(), clock=clock)
    return OpenConnections(services)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def test_an_exception_in_one_connection_does_not_end_the_sweeps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(open_connections, "SWEEP_S", 0.01)

    async def main() -> None:
        connections = limited(Metrics())
        swept = asyncio.Event()
        calls = list[None]()

        def fail() -> int:
            calls.append(None)
            raise RuntimeError("a defect")

        def succeed() -> int:
            if len(calls) >= 3:
                swept.set()
            return 0

        first = Open(connections)
        second = Open(connections)
        first.unsent = fail
        second.unsent = succeed
        await swept.wait()

    run(main())
    assert "a defect" in caplog.text


def until_acknowledged(sender: socket.socket) -> None:
    while any(fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4))):
        pass


def test_a_client_that_takes_too_little_is_closed_and_a_slow_one_is_not() -> None:
    clock = Clock()

    async def main() -> None:
        metrics = Metrics()
        connections = limited(metrics, clock)
        stuck, trickling, slow = (Open(connections) for _ in range(3))
        with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
            clients = []
            for each in (stuck, trickling, slow):
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(listener.getsockname())
                ours, _ = listener.accept()
                ours.setblocking(False)
                each.info["socket"] = stack.enter_context(ours)
                each.unsent = lambda: 1
                clients.append(client)
            with suppress(BlockingIOError):
                while True:
                    stuck.info["socket"].send(bytes(1 << 16))
            while not (stuck.is_closed and trickling.is_closed):
                for sender, reader, count in ((trickling, clients[1], 1), (slow, clients[2], 5000)):
                    if not sender.is_closed:
                        sender.info["socket"].send(bytes(count))
                        reader.recv(count, socket.MSG_WAITALL)
                        until_acknowledged(sender.info["socket"])
                clock.now += 1.0
                for _ in range(2):
                    await asyncio.sleep(0)
        assert not slow.is_closed
        assert metrics.registry.get_sample_value(
            "ign_closed_connections_total", {"reason": "send_timeout"}
        )

    run_timed(main(), clock)


def test_a_lack_of_files_is_logged_once_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(open_connections, "SWEEP_S", 0.01)
    three = asyncio.Event()
    failures = iter(range(2))

    def fail(*_: object) -> None:
        if next(failures, None) is None:
            three.set()
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "open", fail)
    metrics = Metrics()

    async def main() -> None:
        Open(limited(metrics))
        await three.wait()

    run(main())
    assert metrics.registry.get_sample_value("ign_files_exhausted_total") == 3
    assert [record.getMessage()[:13] for record in caplog.records] == ["no more files"]


def test_the_limit_of_files_limits_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for files, possible in ((5000, 4096), (1024, 768), (300, 150)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert open_connections.connection_limit(4096) == possible
    assert len(caplog.records) == 2
