"""One request on one connection, by a client that may disconnect before the answer is complete."""

import asyncio
from dataclasses import dataclass, field

import httptools

from benchmarks.harness.processes import HOST


@dataclass(slots=True)
class Answer:
    """An answer; header names are in lower case. The parser calls its methods."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:  # what follows belongs to a further answer
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if not self.is_complete:
            self.body += body

    def on_message_complete(self) -> None:
        self.is_complete = True


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
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s if leave_after_s is None else leave_after_s):
            return await _read(reader)
    except TimeoutError as exc:
        if leave_after_s is not None:
            raise ConnectionClosed from exc
        raise
    finally:
        writer.transport.abort() if leave_after_s is not None else writer.close()


async def _read(reader: asyncio.StreamReader) -> Answer:
    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.is_complete:
        data = await reader.read(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as exc:
            if not answer.is_complete:
                raise ConnectionError(f"not HTTP: {exc}") from exc
    answer.status = parser.get_status_code()
    return answer
