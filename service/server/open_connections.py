"""The open connections of one event loop: a limit of their number, and a sweep that closes those
that are late.
"""

import asyncio
import logging
import math
import os
import random
import resource
import socket
import sys
from abc import abstractmethod
from contextlib import suppress
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.access import address_key
from service.api.app_state import AppState
from service.domain.accounts import UNLIMITED, Accounts
from service.domain.errors import HeadTooSlow, IgnError, StartupError

_LOG = logging.getLogger("service")
SWEEP_S: Final = 1.0  # a connection may outlive its limit by this time
KEEP_ALIVE_S: Final = 75
"""Seconds that an idle connection stays open: longer than in most load balancers (60 s). If the
server closed first, a proxy could send a POST on a closed connection, and it does not send a POST
twice.
"""
# over which a client that reads must take `MIN_READ_RATE` of what is sent to it
READ_WINDOW_S: Final = 30.0
MIN_READ_RATE: Final = 4096  # bytes per second
_MIN_FILES: Final = 64  # to start at all


class Connection(HttpToolsProtocol):
    """A connection, and when it last changed, in seconds on the clock of `OpenConnections`.

    |              | made | head           | busy | idle |
    |--------------|------|----------------|------|------|
    | `head_since` | now  | now unless set | None | None |
    | `has_begun`  | no   | yes            | no   | no   |
    | `idle_since` | now  |                |      | now  |

    The next head may begin while the connection is busy. Its time counts when the connection is
    idle again.
    """

    peer = ""  # address of the client, as `address_key` shortens it
    idle_since = 0.0
    head_since: float | None = None
    has_begun = False
    # Since when bytes have been waiting to be sent: the begin of a window.
    unread_since = -math.inf
    taken = 0  # bytes that the client had taken then

    @abstractmethod
    def reject(self, error: IgnError) -> None:
        """Answer an error, and close the connection."""


class OpenConnections:
    """The open connections of one event loop. Beyond the limit, a new one replaces one of the
    address with the most.

    It is the one that is idle for longest. If the address has none, that of any address is closed;
    if all others are busy, the new one. The ``metrics`` count those that are open, those that the
    service closes because of a limit, and the sweeps in which no file can be opened: uvloop then
    closes new connections, and reports nothing. Without a limit of its age a connection may last
    for ever.
    """

    def __init__(self, services: AppState) -> None:
        settings = services.settings
        self.clock = services.clock
        self._max_age_s = settings.max_connection_age_s or math.inf
        self.leaving = False  # whether every connection ends with its next response
        self.metrics = services.metrics
        self._limit = connection_limit(settings.max_open_connections)
        self.metrics.connection_limit.set(self._limit)
        self._head_timeout_s = settings.receive_timeout_s
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # the one that is idle for longest first
        self._peers = Accounts(UNLIMITED)  # open connections by address
        self._timer: asyncio.TimerHandle | None = None
        self._had_files = True

    def add(self, connection: Connection) -> None:
        """Count a new connection, and make room for it."""
        now = self.clock()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        address = connection.transport.get_extra_info("peername")
        connection.peer = address_key(address[0] if isinstance(address, tuple) else None)
        connection.idle_since = now
        connection.head_since = now
        self._peers.take(connection.peer, 1)
        self._idle[connection] = None
        self._open.add(connection)
        if len(self._open) > self._limit:
            self._close_oldest()
        self.metrics.open_connections.set(len(self._open))

    def expiry(self) -> float:
        """When a connection that is made now is to end with its next response, in seconds on the
        clock.
        """
        # Spread, so that connections that were made together, as when a service starts, do not end
        # together.
        return self.clock() + self._max_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - no secret

    def _close_oldest(self) -> None:
        greedy = max(self._peers.held, key=self._peers.held.__getitem__)
        oldest = next((each for each in self._idle if each.peer == greedy), None) or next(
            iter(self._idle)
        )
        del self._idle[oldest]
        self.metrics.closed_connections("limit").inc()
        oldest.transport.close()
        if oldest.transport.get_write_buffer_size():  # its client does not read
            oldest.transport.abort()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.remove(connection)
        self._peers.give_back(connection.peer, 1)
        self._idle.pop(connection, None)
        self.metrics.open_connections.set(len(self._open))

    def on_busy(self, connection: Connection) -> None:
        """Note a complete head."""
        connection.has_begun = False
        connection.head_since = None
        self._idle.pop(connection, None)

    def on_idle(self, connection: Connection) -> None:
        """Note the end of the last response."""
        connection.idle_since = self.clock()
        if connection.has_begun:  # the client could not send the rest while reading was paused
            connection.head_since = connection.idle_since
        self._idle[connection] = None

    def finish(self, quiet_s: float) -> None:
        """Close the connections that have been idle for so many seconds, and others after their
        last response.
        """
        quiet_since = self.clock() - quiet_s
        for connection in list(self._open):
            if connection not in self._idle or connection.idle_since <= quiet_since:
                connection.shutdown()

    def _sweep(self) -> None:
        # Armed first: whatever is raised below ends no sweep but this one.
        self._timer = (
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep) if self._open else None
        )
        now = self.clock()
        for connection in list(self._open):
            try:
                self._check(connection, now)
            except Exception:
                _LOG.exception("a connection cannot be checked")
        self._check_files()

    def _check(self, connection: Connection, now: float) -> None:
        """Close the connection if its client reads too slowly, if a head is late, or if none has
        begun for long.
        """
        if self._reads_slowly(connection, now):
            self.metrics.closed_connections("send_timeout").inc()
            connection.transport.abort()
        elif connection not in self._idle:
            return
        elif connection.head_since is None:
            if now - connection.idle_since > KEEP_ALIVE_S:
                connection.transport.close()
        elif now - connection.head_since > self._head_timeout_s:
            self.metrics.closed_connections("head_timeout").inc()
            if connection.has_begun:
                connection.reject(HeadTooSlow("the head of the request did not arrive in time"))
            else:
                connection.transport.close()

    def _reads_slowly(self, connection: Connection, now: float) -> bool:
        """Whether the client took less than the rate allows in a window in which bytes waited all
        the time.
        """
        transport = connection.transport
        if not transport.get_write_buffer_size():
            connection.unread_since = -math.inf
            return False
        passed = now - connection.unread_since
        if passed < READ_WINDOW_S:
            return False
        taken = _taken(transport)
        # the first window begins
        is_slow = passed < math.inf and taken - connection.taken < MIN_READ_RATE * passed
        connection.unread_since = now
        connection.taken = taken
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
    possible = max(files - 256, files // 2)  # for models, listeners, the log and threads
    if possible < wanted:
        _LOG.warning(
            "at most %d connections may be open, not IGN_MAX_OPEN_CONNECTIONS=%d: only %d "
            "files may be open (ulimit -n)",
            possible,
            wanted,
            files,
        )
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
