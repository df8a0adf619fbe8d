"""uvicorn's HTTP protocol with limits on what one connection may send and hold.

made ──first byte──▶ head ──complete──▶ busy ──last response──▶ idle ──first byte──▶ head …
  │ head_timeout_s     │ head_timeout_s   │ limits of the         │ KEEP_ALIVE_S
  ▼ close              ▼ 408              ▼ application           ▼ close

A connection that reaches max_connection_age_s closes with its next response: nothing that was sent
is lost.
"""

import asyncio
from collections.abc import Iterable, Sized
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.api.message import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    WHOLE_RESPONSE,
    check_head_size,
)
from service.domain.errors import HeadTooLarge, IgnError, MalformedRequest, TooManyConnections
from service.server.open_connections import Connection, OpenConnections

# for a client to read its last response, or to get one after it closed its sending half
LINGER_S: Final = 1.0


class Flow(FlowControl):
    """Does not read on while pipelined requests wait: their bodies would need memory."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, unless requests wait."""
        if self.read_paused and not self._pipeline:
            super().resume_reading()


class HttpProtocol(Connection):
    """One connection. A test lists the names that it uses of uvicorn, whose version pyproject.toml
    limits.
    """

    def __init__(self, *args: Any, connections: OpenConnections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._running: RequestResponseCycle | None = None  # `cycle` is the one that arrived last
        # bytes received since the parser last completed a head or found a part of a body
        self._unplaced = 0
        self._is_over = False  # what arrives is ignored: the last response is known
        self._expires = connections.expiry()
        # closes the connection, because it has expired
        self._last: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        # what the requests of a connection use of its transport
        self._for_cycles: Any = SimpleNamespace(
            write=transport.write, is_closing=transport.is_closing, close=self._close
        )
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that runs; uvicorn tells only the one that arrived last."""
        self._connections.remove(self)
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
            if request := self._running.scope["state"].get("request"):
                request.disconnect()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection shortly for the response to a whole request; a client that has left
        looks the same.
        """
        if self._is_idle() or self.cycle.more_body or self.cycle.response_started:
            return False
        self.loop.call_later(LINGER_S, self.transport.close)
        return True

    def data_received(self, data: bytes) -> None:
        """Parse the data in pieces, between which the size of the head is checked."""
        for start in range(0, len(data), MAX_HEAD_BYTES):
            if self._is_over:
                return
            piece = data[start : start + MAX_HEAD_BYTES]
            self._unplaced += len(piece)
            try:
                self._parse(piece)
                check_head_size(self._unplaced, len(self.headers or ()))
            except HeadTooLarge as exc:
                self._refuse(exc)
            except httptools.HttpParserError as exc:
                # What a callback has raised; uvicorn fails with AttributeError on a URL without a
                # path.
                cause = exc.__context__
                if isinstance(cause, IgnError):
                    self._refuse(cause)
                elif cause is None or isinstance(
                    cause, ValueError | AttributeError | httptools.HttpParserError
                ):
                    self._refuse(MalformedRequest("the request is not HTTP/1.1"))
                else:
                    raise

    def _refuse(self, error: IgnError) -> None:
        reason = "pipelining" if isinstance(error, TooManyConnections) else error.code
        self._connections.metrics.closed_connections(reason).inc()
        self.reject(error)

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                rest = data[exc.args[0] :]
            # httptools takes what follows for another protocol. There is none (RFC 9110, 7.8): a
            # new parser gets the head without `Upgrade`. The callbacks skip the first pass, where
            # `should_upgrade` is true.
            line = b"%s %s HTTP/%s" % (
                self.parser.get_method(),
                self.url,
                self.parser.get_http_version().encode(),
            )
            fields = [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            data = b"\r\n".join((line, *fields, b"", rest))

    def on_message_begin(self) -> None:
        """Begin the time of a head."""
        super().on_message_begin()
        self.has_begun = True
        if self.head_since is None:
            self.head_since = self._connections.clock()

    def on_headers_complete(self) -> None:
        """Begin a request, unless an `IgnError` rejects it."""
        if self.parser.get_method() == b"CONNECT":
            raise MalformedRequest("the method CONNECT is not supported")
        if self.parser.should_upgrade():
            return
        # else the head is surely smaller
        if self._unplaced > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            check_head_size(size, len(self.headers))
        if len(self.pipeline) >= MAX_PIPELINED and not self._is_over:
            raise TooManyConnections(f"more than {MAX_PIPELINED} requests wait on this connection")
        self._unplaced = 0
        self._connections.on_busy(self)
        # Deadlines count from here, also of a request that waits.
        self.scope["state"]["arrival"] = self._connections.clock()
        # RFC 9110, section 10.1.1
        self.expect_100_continue &= self.parser.get_http_version() != "1.0"
        super().on_headers_complete()
        send_whole: Any = partial(_send_whole, self.cycle)
        self.scope["extensions"] = {WHOLE_RESPONSE: send_whole}
        self.headers = []  # for trailers, which are no headers of the request
        if self.pipeline and self._last is not None and not self._last.response_started:
            self._last.keep_alive = True  # this request is the last one instead

    def on_body(self, body: bytes) -> None:
        """Note that the parser makes progress."""
        self._unplaced = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Tell the application that the body is here, but for the first pass of a head with
        `Upgrade`.
        """
        if not self.parser.should_upgrade():
            self.scope["state"]["is_received"] = True
            super().on_message_complete()
            # by a large body; else the end of the connection is not noticed
            if self.flow.read_paused:
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Begin the next request, or the time of an idle connection."""
        # Not uvicorn's method, which sets a timer: `OpenConnections` closes idle connections.
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
        if self._is_idle():
            self._connections.on_idle(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = self._for_cycles
        is_old = self._connections.clock() > self._expires
        if cycle.keep_alive and not self.pipeline and (is_old or self._connections.leaving):
            self._last = cycle
            cycle.keep_alive = False
            if is_old:
                self._connections.metrics.closed_connections("age").inc()
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        # there is none before the first request
        return bool(getattr(self.cycle, "response_complete", True))

    def _close(self) -> None:
        """Close the connection after its last response.

        A close with unread input resets the connection, and the client may lose the response. So
        where there can be some, the sending half closes now, and the rest later.
        """
        last = self._running
        if self.transport.is_closing() or last is None:
            return
        if not (last.more_body or last is self._last or self._is_over):
            self.transport.close()
            return
        self.pipeline.clear()  # they came after the response had said that it is the last one
        self._is_over = True
        is_read = last.more_body and not last.scope["state"].get("is_unwanted")
        if not is_read:
            self._pause_for_good()
        self.transport.write_eof()
        # to send the rest of a body that nobody wants, or to read
        self.loop.call_later(30.0 if is_read else LINGER_S, self.transport.close)

    def _pause_for_good(self) -> None:
        self.transport.pause_reading()
        self.flow.read_paused = False  # so that nothing ends this pause

    def reject(self, error: IgnError) -> None:
        """End the connection with a request that has ``state["rejected"]``: the application answers
        it in turn.
        """
        self._is_over = True
        # the body is wrong: the error takes the place of its request
        if not self._is_idle() and self.cycle.more_body:
            if self.pipeline:
                self.pipeline.popleft()
            elif self.cycle.response_started:
                self.transport.close()
            else:
                self.cycle.disconnected = self.cycle.response_complete = True
                self.cycle.waiting_for_100_continue = False
                self.cycle.message_event.set()
        # The path is left out as the rest of the head is, but errors below /v1 have a form of their
        # own.
        path = "/v1/" if (self.url or b"").startswith(b"/v1/") else ""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        cast(dict[str, Any], self.cycle.scope).update(
            method="-", path=path, raw_path=b"", headers=[]
        )
        self.cycle.scope["state"]["rejected"] = error
        self._pause_for_good()


def _send_whole(
    cycle: RequestResponseCycle, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> bool:
    """Send a response in one call of the system. uvicorn takes two, which wakes the client twice.

    If it returns False, use ``send``: the client does not read or has gone, the connection closes,
    the response has no Content-Length, or its body is large: a copy of it would hold up the event
    loop.
    """
    if (
        cycle.disconnected
        or cycle.response_started
        or cycle.flow.write_paused
        or not cycle.keep_alive
        or len(body) > 1 << 18
    ):
        return False
    fields = [*cycle.default_headers, *headers]
    names = dict(fields)
    if b"connection" in names or b"content-length" not in names:
        return False
    lines = b"\r\n".join(map(b": ".join, fields))
    cycle.transport.write(b"".join((STATUS_LINE[status], lines, b"\r\n\r\n", body)))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True
