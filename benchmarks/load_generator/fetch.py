"""One request on one connection, by a client that may disconnect before the answer is complete."""

import asyncio
from dataclasses import dataclass, field

import httptools

from benchmarks.harness.processes import HOST


@dataclass(slots=True)
class Answer:
    """An answer; header names are in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class ConnectionClosed(Exception):
    """The client closed the connection before the answer was complete."""


async def fetch(
    port: int, data: bytes, *, leave_after_s: float | None = None, timeout_s: float = 60.0, host: str = HOST
) -> Answer:
    """Send ``data`` on a new connection and wait for the answer.

    Args:
        leave_after_s: close the connection after so many seconds, answered or not.
        timeout_s: the longest wait for the whole answer.

    Raises:
        ConnectionClosed: the client closed the connection after ``leave_after_s``.
        ConnectionError: the server closed the connection before its answer was complete, or it was not HTTP.
        TimeoutError: no complete answer within ``timeout_s``.
    """
    transport, client = await asyncio.get_running_loop().create_connection(_Client, host, port)
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


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if not self.done.done():  # what follows belongs to a further answer
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as exc:
                self._fail(ConnectionError(f"not HTTP: {exc}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.done.done():
            self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if not self.done.done():
            self._answer.body += body

    def on_message_complete(self) -> None:
        if not self.done.done():
            self._answer.status = self._parser.get_status_code()
            self.done.set_result(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError("the server closed the connection"))

    def _fail(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)
            self.done.exception()  # marks it as retrieved: a client that disconnected does not await it
