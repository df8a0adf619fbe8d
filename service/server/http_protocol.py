"""uvicorn's HTTP protocol with limits for heads and pipelines, early rejection, paced starts and joined writes."""

import asyncio
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.api.fast_path import FastPath
from service.api.problems import status_of
from service.api.access import HEALTH_PATHS
from service.domain.errors import HeadTooLarge, HeadTooSlow, IgnError, MalformedRequest
from service.server.early_rejection import EarlyRejection
from service.server.fast_request import Connection, FastRequest
from service.server.lingering import Lingering
from service.server.open_connections import OpenConnections, Reason
from service.server.request_heads import MAX_HEAD_BYTES, MAX_HEADERS, head_error, head_too_large, parse
from service.server.sockets import has_hung_up
from service.server.write_coalescer import WriteCoalescer

MAX_PIPELINED: Final = 64
"""Requests that may wait on one connection for the response before theirs."""
HALF_CLOSED_S: Final = 1.0
"""Seconds in which a client that has closed its sending half still gets a response. A client that has left looks the
same until something is written to it, and its rows should not be computed."""
SEND_TIMEOUT_S: Final = 60.0
"""Seconds in which a client must take some of what is sent to it. A request whose response waits for that is in
flight."""
_UNAVAILABLE: Final = STATUS_LINE[503]
_REJECTED = cast(RequestResponseCycle, SimpleNamespace(response_complete=True, message_event=asyncio.Event()))


class HttpProtocol(Connection):
    """Limits what a client can make the service hold and do before a request reaches the application.

    It writes the head of a response together with its body, and asks `EarlyRejection` about each request. uvicorn
    writes head and body separately: that takes two system calls and wakes the client twice. The overridden hooks are
    private in uvicorn, so pyproject.toml limits its version. The sweep of `OpenConnections` replaces uvicorn's timer
    for each response.

    Args:
        early_rejection: None to accept and start every request at once.
        connections: the open connections of this event loop.
        fast_path: answers plain requests; None to pass all of them on.
    """

    def __init__(
        self,
        *args: Any,
        early_rejection: EarlyRejection | None = None,
        connections: OpenConnections,
        fast_path: FastPath | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._early_rejection = early_rejection
        self._connections = connections
        self._fast_path = fast_path
        self._running: RequestResponseCycle | FastRequest | None = None  # uvicorn's `cycle` is the last that arrived
        self.headers = []  # uvicorn sets it when a head begins
        self._unplaced = 0  # bytes received since the parser last completed a head or found a part of a body
        self._ended_scope: object = None  # of the last complete message; if `scope` is another one, a message has begun
        self._complete_scope: object = None  # of the last complete head; if `scope` is another one, a head has begun
        self._head_since: float | None = None  # event loop time at which the wait for the end of a head began
        self._idle_since = 0.0  # event loop time of the end of the last response
        self._lingering = Lingering()

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wrap the transport, and count the connection."""
        super().connection_made(
            cast(asyncio.Transport, WriteCoalescer(transport, self.pipeline, self._connections.reads, self._linger))
        )
        self._head_since = self._idle_since = self.loop.time()
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that runs."""
        self._connections.remove(self)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for a short time if the client has sent a whole request and awaits the response."""
        cycle = self._cycle
        if cycle is None or cycle.response_complete or cycle.more_body or cycle.response_started:
            return False
        self._close_soon()
        return True

    def _close_soon(self) -> None:
        self.cycle.keep_alive = False
        self.loop.call_later(HALF_CLOSED_S, self.transport.close)

    def waiting_since(self) -> float | None:
        """See `service.server.open_connections.Connection`."""
        if self._lingering.since is not None:
            return self._lingering.since
        if not self._previous_is_answered():
            return None
        return self._idle_since if self._head_since is None else self._head_since

    def drop(self) -> None:
        """Close the connection without a response."""
        self._coalescer.close_now()

    def finish(self, quiet_since: float) -> None:
        """Close the connection if it has waited since then, or else after the response to its last request.

        Args:
            quiet_since: event loop time.
        """
        since = self.waiting_since()
        if self._coalescer.reading_is_held:
            self._read_on()
        elif since is None:
            self.cycle.keep_alive = False
        elif since <= quiet_since and self._lingering.since is None:
            self.transport.close()

    def close_if_late(self, now: float) -> None:
        """Close a connection that is idle or lingers for too long, or that does not read; a late head gets 408."""
        since, resumed_at = self.waiting_since(), self._connections.resumed_at
        if now - max(self._coalescer.taken_at(now), resumed_at) > SEND_TIMEOUT_S:
            self._connections.on_closed("send_timeout")
            self.transport.abort()
        elif self._lingering.since is not None:
            if self._coalescer.unsent():
                self._lingering.begin(now)  # its time counts from the end of the response
            elif self._lingering.is_late(now, resumed_at):
                self.transport.abort()
        elif since is not None:
            self._close_after(now - max(since, resumed_at))
        elif (self.pipeline or self._lingering.ignores) and has_hung_up(self.transport.get_extra_info("socket")):
            self._close_soon()  # reading is paused, so the event loop does not tell

    def _close_after(self, waited_s: float) -> None:
        if self._coalescer.reading_is_held:
            return
        if self._head_since is not None:
            if waited_s > self._connections.head_timeout_s:
                self._close_late_head()
        elif waited_s > self.timeout_keep_alive:
            self.transport.close()

    def _close_late_head(self) -> None:
        if self._has_head_begun():
            self._refuse(HeadTooSlow("the head of the request did not arrive in time"), "head_timeout")
        else:
            self._connections.on_closed("head_timeout")
            self.transport.close()

    # Parser

    def data_received(self, data: bytes) -> None:
        """Parse the data, and stop at a head beyond its limit.

        The bytes since the last progress of the parser are counted, not those of each header: the parser hands out a
        header when it is complete, and joins its parts by copying until then.
        """
        if self._lingering.ignores:
            if self._lingering.since is None:  # requests before the wrong one still run
                self.transport.pause_reading()
            elif self._lingering.ignore(len(data), self.loop.time()):
                self.transport.abort()
        elif len(data) > MAX_HEAD_BYTES:  # in pieces, so that the count is checked between them
            self._receive_in_pieces(data)
        elif not self._reject_unparsed(data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._unplaced += len(data)
        if not parse(self, data):
            self.send_400_response("")
        elif max(self._unplaced - MAX_HEAD_BYTES, len(self.headers) - MAX_HEADERS) > 0 and not self._lingering.ignores:
            self._refuse(head_too_large(), "head_too_large")
        elif self._head_since is None and self.scope is not self._complete_scope:  # a head has begun
            self._head_since = self.loop.time()
        if self._plain is not None and self._plain.more_body:
            self._plain.wait_for_body()

    def _receive_in_pieces(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_HEAD_BYTES):
            self.data_received(data[start : start + MAX_HEAD_BYTES])

    def on_headers_complete(self) -> None:
        """Refuse a head that is wrong, and reject a request before anything is created for it if there are too many."""
        if self._lingering.ignores or self.parser.should_upgrade():  # `parse` passes the head again
            return
        self._complete_scope, self._head_since = self.scope, None
        if self._refuse_wrong_head():
            return
        self._unplaced = 0
        headers, self.headers = self.headers, []  # trailers go to the new list: they are no headers of the request
        if self._reject_parsed(headers):
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._close("pipelining")
        elif not self._begin_plain(headers):
            super().on_headers_complete()
            if self.pipeline:  # the deadline counts from here
                cast(dict[str, Any], self.cycle.scope)["state"]["arrival"] = time.monotonic()
            if self.cycle.scope["http_version"] == "1.0":
                self.cycle.waiting_for_100_continue = False  # RFC 9110, section 10.1.1

    def _refuse_wrong_head(self) -> bool:
        error = head_error(self.url, self.headers, self.parser.get_http_version(), self._unplaced)
        if error is not None:
            self._refuse(error, "head_too_large" if isinstance(error, HeadTooLarge) else "malformed")
        return error is not None

    def _reject_parsed(self, headers: list[tuple[bytes, bytes]]) -> bool:
        rejecting = self._early_rejection
        if rejecting is None or not rejecting.is_full() or not self._may_respond():
            return False
        rejection = rejecting.rejection(self.parser.get_method(), headers, target=self.url, peer=self._peer)
        if rejection is None:
            return False
        self._reject(rejection, self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive())
        return True

    def _begin_plain(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Begin a request for the fast path, if it is one, in place of what uvicorn does for a request."""
        if self._fast_path is None or not self._may_respond():
            return False
        head = self._fast_path.recognise(self.parser.get_method(), self.url, headers)
        if head is None or self.parser.get_http_version() != "1.1":
            return False
        self._running = self._plain = request = FastRequest(self, self._fast_path, head, self.scope)
        self.cycle = cast(RequestResponseCycle, request)  # it has what uvicorn uses of a cycle
        return True

    def on_message_complete(self) -> None:
        """Note that the parser is between two messages, and hand a plain request over, unless it was replayed."""
        if self._lingering.ignores or self.parser.should_upgrade():
            return
        self._ended_scope = self.scope
        super().on_message_complete()
        if self._plain is not None and self._cycle is self._plain:
            self._plain.start()

    def on_body(self, body: bytes) -> None:
        """Note that the parser makes progress."""
        self._unplaced = 0
        if not self._lingering.ignores:
            super().on_body(body)

    def _has_head_begun(self) -> bool:
        return self.scope is not self._complete_scope

    # Responses

    def on_response_complete(self) -> None:
        """End a response of the application, whose status `AccessLogMiddleware` knows."""
        response = cast(RequestResponseCycle, self._running).scope["state"].get("response")
        self.end_response(200 if response is None else response.status)

    def end_response(self, status: int) -> None:
        """Go on with the next request; after a rejection, in turn."""
        self.server_state.total_requests += 1
        self._idle_since = now = self.loop.time()
        must_wait = self._connections.rejected.on_response(status, now)
        if self.transport.is_closing() or self._lingering.since is not None:
            return
        if must_wait:
            self._coalescer.hold_reading()
            self._connections.rejected.wait(self._read_on, self.loop)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Start the next pipelined request, or read on.

        uvicorn also reads on while pipelined requests wait, so that they grow without limit.
        """
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if not self.pipeline:  # `WriteCoalescer` did not read on before
                self.flow.read_paused = False
                self.transport.resume_reading()
            return
        if self._head_since is not None:
            self._head_since = self.loop.time()  # the client could not send the rest while reading was paused
        self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as a problem document."""
        if not self._lingering.ignores:
            self._refuse(MalformedRequest("the request is not HTTP/1.1"), "malformed")

    @property
    def _peer(self) -> str | None:
        return self.client[0] if self.client else None

    @property
    def _cycle(self) -> RequestResponseCycle | FastRequest | None:
        return self.cycle  # None before the first request, which uvicorn's annotation omits

    def _previous_is_answered(self) -> bool:
        return self._cycle is None or self._cycle.response_complete

    def _may_respond(self) -> bool:
        """Whether a response may be written now: not in place of an earlier one, out of turn, or before others left."""
        return self._previous_is_answered() and not (self._coalescer.reading_is_held or self.flow.write_paused)

    def _refuse(self, error: IgnError, reason: Reason) -> None:
        """Answer with a problem document, and end the connection; what still arrives is ignored."""
        if not self._may_answer():
            self._close(reason)
            return
        if not self._previous_is_answered():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._ignore_rest(reason)
        date = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        refusal = self._connections.refusal(error, self._peer)
        self.transport.write(b"".join((STATUS_LINE[status_of(type(error))], *date, refusal)))
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether a response now would be taken for that of the request which is wrong, not of an earlier one."""
        if self._previous_is_answered():
            return True
        # A request that runs may have a wrong end: a bad chunk, or trailers beyond their limit.
        return self.cycle.more_body and not (self.pipeline or self.cycle.response_started)

    def _close(self, reason: Reason) -> None:
        """End the connection: after the responses to the requests before, if they have arrived as a whole."""
        self._ignore_rest(reason)
        if self._previous_is_answered() or self.cycle.more_body:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _ignore_rest(self, reason: Reason) -> None:
        self._lingering.refuse()
        self._head_since = None
        if self._cycle is None:
            self.cycle = _REJECTED  # uvicorn discards the body of a request whose response is complete
        self._connections.on_closed(reason)

    def _linger(self) -> bool:
        """Begin to ignore what the client still sends, before the connection closes; False if there is no more."""
        is_running = not (self._previous_is_answered() or self.cycle.disconnected)
        may_follow = self._lingering.ignores or self.scope is not self._ended_scope
        if is_running or not may_follow or self._lingering.since is not None:
            return False
        self._lingering.begin(self.loop.time())
        return True

    def _reject_unparsed(self, data: bytes) -> bool:
        """Reject the data without the parser if it is one plain request."""
        rejecting = self._early_rejection
        if rejecting is None or not rejecting.is_full():
            return False
        if self.scope is not self._ended_scope or not self._may_respond():
            return False
        rejection = rejecting.plain_rejection(data, self._peer)
        if rejection is None:
            return False
        self._head_since = None
        self._reject(rejection, keep_alive=True)
        return True

    def _reject(self, rejection: bytes, keep_alive: bool) -> None:
        if self._cycle is None:
            self.cycle = _REJECTED  # uvicorn discards the body of a request whose response is complete
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        connection = b"" if keep_alive else b"connection: close\r\n"
        self._coalescer.write_now(b"".join((_UNAVAILABLE, *head, connection, rejection)))
        if not keep_alive:
            self.transport.close()
        self.end_response(503)

    def _read_on(self) -> None:
        if self._coalescer.reading_is_held and not self.transport.is_closing():
            self.flow.read_paused = False
            self._coalescer.read_on()
            self._go_on()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._coalescer.reading_is_held:  # after a rejection it is not this connection's turn
            self.pipeline.appendleft((cycle, app))
            return
        self._running = cycle
        start = partial(super()._start_asgi_task, cycle, app)
        if self._early_rejection is None or cycle.scope["path"] in HEALTH_PATHS:  # a probe does not wait for its turn
            start()
        else:
            # The deadline of a request counts from here, also while it waits for its start.
            cast(dict[str, Any], cycle.scope)["state"].setdefault("arrival", time.monotonic())
            self._early_rejection.admit(start, self.loop.call_soon)
