"""A plain request in the protocol, in place of uvicorn's cycle of request and response."""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.fast_path import Call, FastPath
from service.api.plain_request import Head
from service.server.write_coalescer import WriteCoalescer

BODY_WAIT_S: Final = 0.05
"""Seconds in which the body may follow its head; many clients send the two apart. Then the request is replayed."""


class Connection(HttpToolsProtocol, ABC):
    """The protocol of a connection, as plain requests use it. Its transport is a `WriteCoalescer`."""

    _plain: "FastRequest | None" = None
    """The plain request that has no response yet."""

    @property
    def _coalescer(self) -> WriteCoalescer:
        return cast(WriteCoalescer, self.transport)

    @abstractmethod
    def end_response(self, status: int) -> None:
        """Go on after a response with this status."""

    def replay(self, request: "FastRequest", cycle: RequestResponseCycle) -> None:
        """Pass a plain request on to the application as ``cycle``."""
        self._plain = None
        if cast(object, self.cycle) is request:  # else a pipelined one has arrived
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    def answer(self, request: "FastRequest", status: int, lines: bytes, body: bytes, *, close: bool) -> None:
        """Write the response to a plain request; ``close``: its lines say that the connection closes."""
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        connection = b"" if request.keep_alive or close else b"connection: close\r\n"
        if not request.disconnected:
            self._coalescer.write_now(b"".join((STATUS_LINE[status], *head, lines, connection, b"\r\n", body)))
        self._plain = None
        if close or not request.keep_alive:
            self.transport.close()
        self.end_response(status)


class FastRequest:
    """Has the attributes that uvicorn's protocol uses of a cycle, and is its own ``message_event``.

    Args:
        protocol: of the connection.
        fast_path: answers or replays the request.
        head: from ``fast_path``.
        scope: of ASGI, as far as uvicorn made it when the head began.
    """

    __slots__ = (
        "_fast_path",
        "_is_waiting",
        "_protocol",
        "_scope",
        "arrival",
        "body",
        "call",
        "disconnected",
        "head",
        "keep_alive",
        "more_body",
        "peer",
        "response_complete",
        "response_started",
    )

    def __init__(self, protocol: Connection, fast_path: FastPath, head: Head, scope: Any) -> None:
        self._protocol: Connection | None = protocol
        self._fast_path, self.head, self._scope = fast_path, head, scope
        self.arrival = time.monotonic()
        self.peer = protocol.client[0] if protocol.client else None
        self.body = b""
        self.more_body, self._is_waiting = True, False
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive: bool = protocol.parser.should_keep_alive()
        self.call: Call | None = None

    @property
    def message_event(self) -> "FastRequest":
        """What uvicorn sets after a change."""
        return self

    def set(self) -> None:
        """Do what a change asks for."""
        if self.disconnected and not self.response_complete:
            self._fast_path.cancel(self)

    def start(self) -> None:
        """Hand the request over: the body is complete."""
        self._fast_path.add(self)

    def wait_for_body(self) -> None:
        """Replay the request unless its body arrives soon."""
        if not self._is_waiting:
            self._is_waiting = True
            asyncio.get_running_loop().call_later(BODY_WAIT_S, self._stop_waiting)

    def replay(self) -> None:
        """Pass the request on to the ASGI application."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.replay(self, self._cycle(protocol))

    def answer(self, status: int, headers: bytes, body: bytes, *, close: bool = False) -> None:
        """See `service.api.plain_request.PlainRequest`."""
        self.response_started = self.response_complete = True
        protocol = self._protocol
        self.call = self._protocol = None  # breaks reference cycles
        if protocol is not None:
            protocol.answer(self, status, headers, body, close=close)

    def _cycle(self, protocol: "Connection") -> RequestResponseCycle:
        head, scope = self.head, self._scope
        scope |= {
            "method": "POST",
            "path": head.path,
            "raw_path": head.path.encode("ascii"),
            "query_string": head.query,
        }
        scope["state"]["arrival"] = self.arrival
        cycle = RequestResponseCycle(
            scope=scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=protocol.access_log,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self.keep_alive,
            on_response=protocol.on_response_complete,
        )
        cycle.body += self.body
        cycle.more_body, cycle.disconnected = self.more_body, self.disconnected
        cycle.message_event.set()
        return cycle

    def _stop_waiting(self) -> None:
        if self.more_body and not self.response_complete:
            self.replay()
