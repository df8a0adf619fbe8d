"""A server on a free port whose every answer is decided by a function: for what measures
servers.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Reply = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Seen:
    """What a server has seen so far."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0


@contextmanager
def fake_server(reply: Reply) -> Iterator[Seen]:
    """Serve until the block ends, by when clients must be gone; ``reply`` is called for every
    request.
    """
    seen = Seen()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                seen.requests.append(head + await reader.readexactly(int(length or 0)))
                await reply(seen, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        seen.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        # Clients are gone, so every conversation ends by itself. asyncio forgets sockets that it
        # accepts as it closes, so the last ones are accepted before.
        for _ in range(3):
            await asyncio.sleep(0)
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest)
        server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
