"""The listening socket, from its address to its end."""

import contextlib
import ctypes
import logging
import socket
import struct
from collections.abc import Iterator
from typing import Final

from service.domain.errors import StartupError
from service.settings import Settings

_LOG = logging.getLogger("service")
BACKLOG: Final = 2048
_SO_ATTACH_FILTER: Final = 26  # of Linux
_DROP_SYN: Final = struct.pack(
    "HBBI" * 4,
    *(0x30, 0, 0, 13),  # the flags of the TCP header
    *(0x45, 0, 1, 0x02),  # SYN?
    *(0x06, 0, 0, 0),  # drop the segment
    *(0x06, 0, 0, 1 << 30),  # pass the whole segment
)
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - address that stands for all → one to open


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the address in the settings; raises as `bind`."""
    return bind(settings.host, settings.port, listens=True)


def bind(host: str, port: int, *, shared: bool = False, listens: bool = False) -> socket.socket:
    """A socket bound to this address; port 0 takes a free one, and ``shared`` lets others have it too (SO_REUSEPORT).

    Raises StartupError if the address is not available.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        if listens:
            bound.listen(BACKLOG)
    except OSError as exc:
        bound.close()
        raise bind_error(host, port, exc) from exc
    return bound


def stop_handshakes(listener: socket.socket) -> None:
    """Let the kernel begin no further connection on this socket, where the system can do that (Linux).

    A close resets connections that wait to be accepted, so nothing may arrive between the last accept and the close.
    A client that connects later tries again after a second. Then another process listens, or the client is refused.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    pointer = struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait to be accepted."""
    with contextlib.suppress(OSError):  # none is left, or the socket does not listen
        while True:
            yield listener.accept()[0]


def write_startup_line(bound: socket.socket) -> None:
    """Log the URL of this socket, one that a browser on this machine opens. Tests read the port from this line.

    Call it when the service is ready, so that the last line of a service that refuses to start is the refusal.
    """
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if bound.family == socket.AF_INET6 else host
    everywhere = " (all interfaces)" if host in _WILDCARDS else ""
    _LOG.info("listening on http://%s:%d%s", _WILDCARDS.get(host, shown), port, everywhere)


def bind_error(host: str, port: int, exc: OSError) -> StartupError:
    """The error of a service whose address is not available."""
    return StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")
