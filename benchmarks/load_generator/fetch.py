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
    port: int, data: bytes, *, leave_after_s: float | None = None, timeout_s: float = 60.0
) -> Answer:
    """Send ``data`` on a new connection and wait for the answer, but not longer than one of the
    times.

    Raises:
        ConnectionClosed: ``leave_after_s`` passed. ConnectionError: the server closed the
        connection before its answer was complete, or it was not HTTP. TimeoutError: ``timeout_s``
        passed.
    """
    reader, writer = await asyncio.open_connection(HOST, port)
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
    parsing = _Parsing()
    while not parsing.is_complete:
        data = await reader.read(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        try:
            parsing.parser.feed_data(data)
        except httptools.HttpParserError as exc:
            if not parsing.is_complete:
                raise ConnectionError(f"not HTTP: {exc}") from exc
    return parsing.answer


class _Parsing:
    """What the parser calls, until the first answer is complete: what follows belongs to a further
    one.
    """

    def __init__(self) -> None:
        self.answer = Answer()
        self.is_complete = False
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:
            self.answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if not self.is_complete:
            self.answer.body += body

    def on_message_complete(self) -> None:
        if not self.is_complete:
            self.answer.status = self.parser.get_status_code()
            self.is_complete = True
