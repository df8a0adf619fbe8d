"""The listening socket."""

import logging
import socket
from typing import Final

from service.domain.errors import StartupError
from service.settings import Settings

_LOG = logging.getLogger("service")
BACKLOG: Final = 2048
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - address that stands for all → one to open


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the address in the settings.

    Raises:
        StartupError: the address is not available.
    """
    listener = bind(settings.host, settings.port)
    try:
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise bind_error(settings.host, settings.port, exc) from exc
    return listener


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket that does not listen yet.

    Args:
        host: a host name or an address.
        port: 0 takes a free one.
        shared: let other shared sockets listen on the same port (SO_REUSEPORT).

    Raises:
        StartupError: the address is not available.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        raise bind_error(host, port, exc) from exc
    return bound


def write_startup_line(bound: socket.socket) -> None:
    """Log the URL of this socket, one that a browser on this machine opens. Tests read the port from this line.

    Call it when the service is ready, so that the last line of a service that refuses to start is the refusal.
    """
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if bound.family == socket.AF_INET6 else host
    everywhere = " (all interfaces)" if host in _WILDCARDS else ""
    _LOG.info("listening on http://%s:%d%s", _WILDCARDS.get(host, shown), port, everywhere)


def bind_error(host: str, port: int, exc: OSError) -> StartupError:
    """The refusal to start when this address is not available."""
    return StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")
