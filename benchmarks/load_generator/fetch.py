"""A connection of a client, and one request on a new one, by a client that may disconnect before
the answer is complete.
"""

import asyncio
from dataclasses import dataclass, field
from typing import cast

import httptools

from benchmarks.harness.processes import HOST


@dataclass(slots=True)
class Answer:
    """An answer; header names are in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight."""

    __slots__ = ("_parser", "_status", "body", "error", "heard", "is_open", "transport")

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status = asyncio.get_running_loop().create_future()
        self.is_open = True
        self.heard = False  # something of the response has come
        self.error = ""
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, data: bytes) -> "asyncio.Future[int]":
        """Send a request; the result is its status, or 0 without a whole response."""
        self.heard = False
        self.body = b""
        self._status = asyncio.get_running_loop().create_future()
        if self.is_open:
            self.transport.write(data)
        else:
            self._end("cut_off")
        return self._status

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("not_http")

    def on_body(self, body: bytes) -> None:
        if not self._status.done():
            self.body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the response follows
            return
        if not self._parser.should_keep_alive():
            self.is_open = False
            self.transport.close()
        if not self._status.done():
            self._status.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("cut_off")

    def _end(self, error: str) -> None:
        self.is_open = False
        self.transport.close()
        if not self._status.done():
            self.error = error
            self._status.set_result(0)


class _WithHeaders(Connection):
    """It keeps the headers of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status.done():
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")


async def fetch(port: int, data: bytes, *, timeout_s: float = 60.0) -> Answer:
    """Send ``data`` on a new connection and wait for the answer.

    Raises:
        ConnectionError: the server closed the connection before its answer was complete, or it was
        not HTTP. TimeoutError: ``timeout_s`` passed; the client has disconnected.
    """
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(_WithHeaders, HOST, port)
    try:
        async with asyncio.timeout(timeout_s):
            status = await connection.send(data)
    finally:
        transport.abort()
    if not status:
        raise ConnectionError(connection.error)
    return Answer(status, connection.headers, connection.body)
