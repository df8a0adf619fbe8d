import asyncio
import logging
import multiprocessing
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.server import open_connections, open_files
from service.server.open_connections import OpenConnections, Reason
from service.server.uvicorn_server import config


class Open:
    """A connection that waits since a time."""

    def __init__(self, connections: OpenConnections, since: float | None) -> None:
        self.since = since
        self.is_dropped = False
        connections.add(self)

    def waiting_since(self) -> float | None:
        return self.since

    def close_if_late(self, now: float) -> None:
        pass

    def drop(self) -> None:
        self.is_dropped = True


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def healthy(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(listener: socket.socket, keep_alive_s: int = 75) -> AsyncIterator[None]:
    """A server with `healthy` in this event loop."""
    how = config(healthy)
    how.lifespan, how.timeout_keep_alive = "off", keep_alive_s
    server = uvicorn.Server(how)
    task = asyncio.create_task(server.serve([listener]))
    yield
    server.should_exit = True
    await task


@contextmanager
def few_files() -> Iterator[None]:
    """No further file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_oldest_waiting_connections_make_room() -> None:
    async def main() -> None:
        counts: list[int] = []
        reasons: list[Reason] = []
        connections = OpenConnections(limit=3, on_change=counts.append, on_closed=reasons.append)
        busy, old, young = (Open(connections, since) for since in (None, 1.0, 2.0))
        Open(connections, 3.0)
        assert [one.is_dropped for one in (busy, old, young)] == [False, True, False]
        assert counts == [1, 2, 3, 3]
        assert reasons == ["limit"]
        connections.remove(old)  # as `connection_lost` does, later
        assert counts == [1, 2, 3, 3]

    asyncio.run(main())


@pytest.mark.parametrize("start", [b"", REQUEST[:20]], ids=["silent", "half a head"])
def test_after_a_pause_of_the_process_the_time_begins_again(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """Several sweeps come before what the client sends: it may have been paused too."""
    monkeypatch.setattr(open_connections, "SWEEP_S", 0.05)

    async def main(listener: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        clock = loop.time
        async with serving(listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(start)
            await asyncio.sleep(0.2)
            monkeypatch.setattr(loop, "time", lambda: clock() + 60)
            await asyncio.sleep(0.5)
            writer.write(REQUEST.removeprefix(start))
            received = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            return received

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(main(listener)).startswith(b"HTTP/1.1 200 ")


def test_if_none_waits_the_new_one_is_closed() -> None:
    async def main() -> None:
        connections = OpenConnections(limit=2)
        busy = [Open(connections, None) for _ in range(2)]
        for _ in range(3):
            assert Open(connections, 1.0).is_dropped
        assert not any(one.is_dropped for one in busy)

    asyncio.run(main())


def sweep_without_files() -> tuple[int, list[str]]:
    """How often a lack of files is counted, and what is logged."""
    counted: list[None] = []
    logged: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    logging.getLogger("service").addHandler(Handler())

    async def main() -> None:
        enough = asyncio.Event()

        def count() -> None:
            counted.append(None)
            if len(counted) == 3:
                enough.set()

        Open(OpenConnections(on_files_exhausted=count), 1.0)
        with few_files():
            await enough.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_connections, "SWEEP_S", 0.01)
        asyncio.run(main())
    return len(counted), logged


def test_a_lack_of_files_is_logged_once_and_counted() -> None:
    # In a process of its own: services of other tests would notice the lack as well.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        counted, logged = pool.submit(sweep_without_files).result(60)
    assert counted == 3
    assert len(logged) == 1


def test_the_limit_of_files_limits_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_files.is_one_free()
    with few_files():
        assert not open_files.is_one_free()
    for files, possible in ((5000, 4096), (1024, 768), (300, 150)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert open_files.connection_limit(4096) == possible
    assert len(caplog.records) == 2


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_connections, "SWEEP_S", 0.05)

    async def main(listener: socket.socket) -> bytes:
        async with serving(listener, keep_alive_s=1):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = await asyncio.wait_for(reader.read(), 30)  # until the end
            writer.close()
            return received

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(main(listener)).startswith(b"HTTP/1.1 200 ")
