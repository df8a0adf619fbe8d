"""One request on one connection, by a client that may disconnect before the answer is complete."""

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


async def fetch(port: int, data: bytes, *, leave_after_s: float | None = None, timeout_s: float = 60.0) -> Answer:
    """Send ``data`` and wait for the answer.

    Args:
        port: of a server on the loopback interface.
        data: the bytes to send.
        leave_after_s: close the connection after so many seconds, answered or not.
        timeout_s: the longest wait for the whole answer.

    Raises:
        ConnectionClosed: the client closed the connection after ``leave_after_s``.
        ConnectionError: the server closed the connection before its answer was complete, or it was not HTTP.
        TimeoutError: no complete answer within ``timeout_s``.
    """
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: _Client(loop.create_future()), HOST, port)
    try:
        transport.write(data)
        async with asyncio.timeout(timeout_s if leave_after_s is None else leave_after_s):
            return await client.done
    except TimeoutError as exc:
        if leave_after_s is not None:
            raise ConnectionClosed from exc
        raise
    finally:
        transport.abort() if leave_after_s is not None else transport.close()


class ConnectionClosed(Exception):
    """The client closed the connection before the answer was complete."""


class _Client(asyncio.Protocol):
    def __init__(self, done: "asyncio.Future[Answer]") -> None:
        self.done = done
        self._answer = Answer()
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(ConnectionError(f"not HTTP: {exc}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.done.done():  # else it belongs to a further answer
            self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self.done.done():
            self._answer.status, self._answer.body = self._parser.get_status_code(), b"".join(self._body)
            self.done.set_result(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError("the server closed the connection"))

    def _fail(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)
            self.done.exception()  # marks it as retrieved: a client that disconnected does not await it
