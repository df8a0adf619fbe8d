"""The open connections of one event loop: a limit of their number, and a sweep that closes those that wait too long.

A connection waits while no request on it awaits its response. One timer serves all connections, because a timer for
each request would cost more than the sweep.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable
from operator import itemgetter
from typing import Final, Literal, Protocol

from service.api.problems import describe, problem_response
from service.api.routes import UNMATCHED
from service.domain.errors import IgnError
from service.observability.logs import Observe, choose_request_id, log_request
from service.server import open_files
from service.server.early_rejection import Pacer
from service.server.rejected_connections import RejectedConnections

_LOG = logging.getLogger("service")
DEFAULT_LIMIT: Final = 4096
DEFAULT_HEAD_TIMEOUT_S: Final = 10.0
MAX_READS_PER_TICK: Final = 2
"""Connections that may read on in one iteration of the event loop, up to 256 KiB each, so that many large bodies do not
hold up the others."""
SWEEP_S: Final = 1.0
"""Seconds between two sweeps: a connection may outlive its limit by this time."""
_MAX_DELAY_S: Final = 1.5 * SWEEP_S  # a sweep that comes later follows a pause of the process
_RESCAN_S: Final = 0.1  # after a search that found no waiting connection, new ones are closed without a search

Reason = Literal["limit", "head_timeout", "head_too_large", "malformed", "pipelining", "send_timeout"]
"""Why the service closed a connection."""


class Connection(Protocol):
    """What `OpenConnections` needs of a connection."""

    def waiting_since(self) -> float | None:
        """Event loop time since which the connection waits; None while a request awaits its response."""
        ...

    def close_if_late(self, now: float) -> None:
        """Close the connection if it has waited longer than it may.

        Args:
            now: event loop time.
        """
        ...

    def drop(self) -> None:
        """Close the connection without a response."""
        ...


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass


class OpenConnections:
    """The open connections of one event loop.

    Beyond the limit, a new connection replaces those that have waited longest. It is closed itself only if all others
    await a response.

    Args:
        limit: most connections, ≥ 1.
        head_timeout_s: seconds that the head of a request may take; the connections apply it.
        on_change: called with the number of open connections whenever it changes.
        on_closed: called when the service closes a connection because of a limit.
        on_files_exhausted: called in each sweep in which this process cannot open another file. uvloop then closes new
            connections and reports nothing.
        observe: called for each response of `refusal`, as `AccessLogMiddleware` calls it for other responses.
    """

    def __init__(
        self,
        *,
        limit: int = DEFAULT_LIMIT,
        head_timeout_s: float = DEFAULT_HEAD_TIMEOUT_S,
        on_change: Callable[[int], None] = _ignore,
        on_closed: Callable[[Reason], None] = _ignore,
        on_files_exhausted: Callable[[], None] = _nothing,
        observe: Observe | None = None,
    ) -> None:
        self.head_timeout_s = head_timeout_s
        self.reads = Pacer(MAX_READS_PER_TICK)
        """Gives connections with large bodies their turn to read on."""
        self.rejected = RejectedConnections()
        self.resumed_at = 0.0
        """Event loop time of the end of the last pause of this process. What clients sent during it is unread then, and
        they may have been paused too, so connections are late only from here."""
        self.on_closed = on_closed
        self._limit = limit
        self._on_change = on_change
        self._on_files_exhausted = on_files_exhausted
        self._had_files = True
        self._observe = observe
        self._open: dict[Connection, None] = {}  # in the order of their arrival
        self._timer: asyncio.TimerHandle | None = None
        self._search_at = self._swept_at = 0.0

    def add(self, connection: Connection) -> None:
        """Count a new connection, and make room for it. Call it on the event loop."""
        self._open[connection] = None
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer, self._swept_at = loop.call_later(SWEEP_S, self._sweep, loop), loop.time()
        if len(self._open) > self._limit:
            self._make_room(connection, loop.time())
        self._on_change(len(self._open))

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        if connection in self._open:
            del self._open[connection]
            self._on_change(len(self._open))

    def refusal(self, error: IgnError, peer: str | None = None) -> bytes:
        """The response to a head that is refused, from its first own header on; it is logged and counted.

        Args:
            error: why. The connection closes after the response.
            peer: address of the client.
        """
        request_id = choose_request_id(None)
        response = problem_response(error, request_id)
        state = {"request_id": request_id, "peer": peer, "problem": describe(error).code}
        log_request("-", UNMATCHED, response.status_code, 0.0, state)
        if self._observe is not None:
            self._observe(UNMATCHED, response.status_code, 0.0, state)
        head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers if header[0] != b"connection")
        return b"%sx-request-id: %s\r\nconnection: close\r\n\r\n%s" % (head, request_id.encode(), bytes(response.body))

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._check_files()
        now = loop.time()
        if now - self._swept_at > _MAX_DELAY_S:
            self.resumed_at = now
        for connection in list(self._open):
            connection.close_if_late(now)
        self._swept_at = now
        self._timer = loop.call_later(SWEEP_S, self._sweep, loop) if self._open else None

    def _check_files(self) -> None:
        has_files = open_files.is_one_free()
        if not has_files:
            self._on_files_exhausted()
            if self._had_files:
                _LOG.error("no more files can be opened (ulimit -n): new connections are closed without a response")
        self._had_files = has_files

    def _make_room(self, newest: Connection, now: float) -> None:
        if now >= self._search_at:
            waiting = [(one, since) for one in self._open if one is not newest and (since := one.waiting_since())]
            # Several at a time, so that a search through all connections pays for many new ones.
            oldest = heapq.nsmallest(1 + self._limit // 64, waiting, key=itemgetter(1))
            for one, _ in oldest:
                self._drop(one)
            if oldest:
                return
            self._search_at = now + _RESCAN_S
        self._drop(newest)

    def _drop(self, connection: Connection) -> None:
        self._open.pop(connection, None)  # now, because `connection_lost` comes later in the event loop
        connection.drop()
        self.on_closed("limit")
