"""The open connections of one event loop: a limit of their number, and a sweep that closes those
that are late.
"""

import asyncio
import logging
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sized
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.api.access import address_key
from service.api.message import WHOLE_RESPONSE
from service.domain.accounts import UNLIMITED, Accounts
from service.domain.errors import HeadTooSlow, IgnError, StartupError
from service.observability.metrics import Metrics

_LOG = logging.getLogger("service")
SWEEP_S: Final = 1.0  # a connection may outlive its limit by this time
# over which a client that reads must take `MIN_READ_RATE` of what is sent to it
READ_WINDOW_S: Final = 30.0
MIN_READ_RATE: Final = 4096  # bytes per second
# for a client to read its last response, or to get one after it closed its sending half
LINGER_S: Final = 1.0
_MAX_COPY: Final = 1 << 18  # bytes of a body that are copied behind their head
_RESERVED_FILES, _MIN_FILES = 256, 64  # for models, listeners, the log and threads; to start at all


@dataclass(slots=True)
class _State:
    """When a connection last changed, in seconds on the clock of `OpenConnections`.

    |              | made | head           | busy | idle |
    |--------------|------|----------------|------|------|
    | `head_since` | now  | now unless set | None | None |
    | `has_begun`  | no   | yes            | no   | no   |
    | `idle_since` | now  |                |      | now  |

    The next head may begin while the connection is busy. Its time counts when the connection is
    idle again.
    """

    reject: Callable[[IgnError], None]
    peer: str  # address of the client, as `address_key` shortens it
    idle_since: float
    head_since: float | None
    has_begun: bool = False
    # Since when bytes have been waiting to be sent: the begin of a window.
    unread_since: float = -math.inf
    taken: int = 0  # bytes that the client had taken then


class OpenConnections:
    """The open connections of one event loop. Beyond the limit, a new one replaces one of the
    address with the most.

    It is the one that is idle for longest. If the address has none, that of any address is closed;
    if all others are busy, the new one. The ``metrics`` count those that are open, those that the
    service closes because of a limit, and the sweeps in which no file can be opened: uvloop then
    closes new connections, and reports nothing. Without ``max_age_s`` a connection may last for
    ever. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        limit: int = 4096,
        head_timeout_s: float = 10.0,
        max_age_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._max_age_s, self._spread = max_age_s or math.inf, np.random.default_rng()
        self.leaving = False  # whether every connection ends with its next response
        self.metrics = metrics
        self._limit = limit
        self._head_timeout_s = head_timeout_s
        self._open: dict[HttpToolsProtocol, _State] = {}
        self._idle: dict[HttpToolsProtocol, None] = {}  # the one that is idle for longest first
        self._peers = Accounts(UNLIMITED)  # open connections by address
        self._timer: asyncio.TimerHandle | None = None
        self._swept_at = 0.0
        # end of the last pause of this process, during which it could not read
        self._resumed_at = 0.0
        self._had_files = True

    def add(self, connection: HttpToolsProtocol, reject: Callable[[IgnError], None]) -> None:
        """Count a new connection, and make room for it; ``reject`` answers an error on it and
        closes it.
        """
        now = self.clock()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
            self._swept_at = now
        address = connection.transport.get_extra_info("peername")
        peer = address_key(address[0] if isinstance(address, tuple) else None)
        self._peers.take(peer, 1)
        self._idle[connection] = None
        self._open[connection] = _State(reject, peer, idle_since=now, head_since=now)
        if len(self._open) > self._limit:
            self._close_oldest()
        self.metrics.open_connections.set(len(self._open))

    def expiry(self) -> float:
        """When a connection that is made now is to end with its next response, in seconds on the
        clock.
        """
        # Spread, so that connections that were made together, as when a service starts, do not end
        # together.
        return self.clock() + self._max_age_s * float(self._spread.uniform(0.9, 1.1))

    def _close_oldest(self) -> None:
        greedy = max(self._peers.held, key=self._peers.held.__getitem__)
        of_greedy = (each for each in self._idle if self._open[each].peer == greedy)
        oldest = next(of_greedy, None) or next(iter(self._idle))
        del self._idle[oldest]
        self.metrics.closed_connections("limit").inc()
        oldest.transport.close()
        if oldest.transport.get_write_buffer_size():  # its client does not read
            oldest.transport.abort()

    def remove(self, connection: HttpToolsProtocol) -> None:
        """Forget a connection that is closed."""
        self._peers.give_back(self._open.pop(connection).peer, 1)
        self._idle.pop(connection, None)
        self.metrics.open_connections.set(len(self._open))

    def on_head(self, connection: HttpToolsProtocol) -> None:
        """Note the first byte of a head."""
        state = self._open[connection]
        state.has_begun = True
        if state.head_since is None:
            state.head_since = self.clock()

    def on_busy(self, connection: HttpToolsProtocol) -> None:
        """Note a complete head."""
        state = self._open[connection]
        state.has_begun = False
        state.head_since = None
        self._idle.pop(connection, None)

    def on_idle(self, connection: HttpToolsProtocol) -> None:
        """Note the end of the last response."""
        state = self._open[connection]
        state.idle_since = self.clock()
        if state.has_begun:  # the client could not send the rest while reading was paused
            state.head_since = state.idle_since
        self._idle[connection] = None

    def finish(self, quiet_s: float) -> None:
        """Close the connections that have been idle for so many seconds, and others after their
        last response.
        """
        quiet_since = self.clock() - quiet_s
        for connection, state in list(self._open.items()):
            if connection not in self._idle or state.idle_since <= quiet_since:
                connection.shutdown()

    def _sweep(self) -> None:
        # Armed first: whatever is raised below ends no sweep but this one.
        self._timer = (
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep) if self._open else None
        )
        now = self.clock()
        if now - self._swept_at > 1.5 * SWEEP_S:
            self._resumed_at = now
        self._swept_at = now
        for connection, state in list(self._open.items()):
            try:
                self._check(connection, state, now)
            except Exception:
                _LOG.exception("a connection cannot be checked")
        self._check_files()

    def _check(self, connection: HttpToolsProtocol, state: _State, now: float) -> None:
        """Close the connection if its client reads too slowly, or if a head is late.

        Times count from the end of the last pause at the earliest: what clients sent meanwhile is
        still unread.
        """
        if self._reads_slowly(connection.transport, state, now):
            self.metrics.closed_connections("send_timeout").inc()
            connection.transport.abort()
        elif (
            connection in self._idle
            and now - max(state.head_since or now, self._resumed_at) > self._head_timeout_s
        ):
            self.metrics.closed_connections("head_timeout").inc()
            if state.has_begun:
                state.reject(HeadTooSlow("the head of the request did not arrive in time"))
            else:
                connection.transport.close()

    def _reads_slowly(self, transport: asyncio.Transport, state: _State, now: float) -> bool:
        """Whether the client took less than the rate allows in a window in which bytes waited all
        the time.
        """
        if not transport.get_write_buffer_size():
            state.unread_since = -math.inf
            return False
        since = state.unread_since
        is_window = since >= self._resumed_at
        if is_window and now - since < READ_WINDOW_S:
            return False
        taken = _taken(transport)
        is_slow = is_window and taken - state.taken < MIN_READ_RATE * (now - since)
        state.unread_since = now
        state.taken = taken
        return is_slow

    def _check_files(self) -> None:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
            self._had_files = True
        except OSError:
            self.metrics.files_exhausted.inc()
            if self._had_files:
                _LOG.error(
                    "no more files can be opened (ulimit -n): new connections are closed "
                    "without a response"
                )
            self._had_files = False


class Flow(FlowControl):
    """Does not read on while pipelined requests wait: their bodies would need memory."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, unless requests wait."""
        if not self._pipeline:
            super().resume_reading()


def whole_response(cycle: RequestResponseCycle) -> dict[str, Any]:
    """The extension of ASGI that sends a whole response at once."""
    return {WHOLE_RESPONSE: partial(_send_whole, cycle)}


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
    ):
        return False
    if len(body) > _MAX_COPY:
        return False
    parts = [STATUS_LINE[status]]
    has_length = False
    for name, value in (*cycle.default_headers, *headers):
        if name == b"connection":
            return False
        has_length |= name == b"content-length"
        parts += (name, b": ", value, b"\r\n")
    if not has_length:
        return False
    cycle.transport.write(b"".join([*parts, b"\r\n", body]))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True


class LingeringTransport:
    """The transport of the last response of a connection.

    A close with unread input resets the connection, and the client may lose the response. So it
    comes later.
    """

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self._transport = transport
        self._flow = flow

    def pause_reading(self) -> None:
        """Read no more, for good."""
        self._transport.pause_reading()
        self._flow.read_paused = False  # so that nothing ends this pause

    def close(self) -> None:
        """Close the sending half now, and the connection soon."""
        if not self.is_closing():
            self.pause_reading()
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit; containers and systemd units often
    start with 1024.

    Raises StartupError if the limit is too low for the service to start.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the system may allow less than the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = _file_limit()
    if files < _MIN_FILES:
        raise StartupError(
            f"only {files} files may be open (ulimit -n); the service needs {_MIN_FILES}"
        )


def connection_limit(wanted: int) -> int:
    """How many connections may be open: ``wanted``, or fewer if the limit of open files is low.
    Logs a warning then.
    """
    files = _file_limit()
    possible = max(files - _RESERVED_FILES, files // 2)
    if possible < wanted:
        text = (
            "at most %d connections may be open, not IGN_MAX_OPEN_CONNECTIONS=%d: only %d "
            "files may be open (ulimit -n)"
        )
        _LOG.warning(text, possible, wanted, files)
    return min(possible, wanted)


def _file_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def _taken(transport: asyncio.Transport) -> int:
    """Bytes that the client's system has acknowledged since the connection was made:
    `tcpi_bytes_acked` of Linux.

    Our buffer alone does not say it: the kernel takes from it in large steps, so it looks stuck
    while a client reads.
    """
    info: bytes = transport.get_extra_info("socket").getsockopt(
        socket.IPPROTO_TCP, socket.TCP_INFO, 128
    )
    return int.from_bytes(info[120:128], sys.byteorder)
