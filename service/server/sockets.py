"""The listening socket."""

import logging
import socket
from typing import Final

from service.domain.errors import StartupError
from service.settings import Settings

_LOG = logging.getLogger("service")
BACKLOG: Final = 2048


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the address that the settings name.

    Raises:
        StartupError: the address cannot be had.
    """
    listener = bind(settings.host, settings.port)
    try:
        begin(listener, settings)
    except StartupError:
        listener.close()
        raise
    return listener


def begin(bound: socket.socket, settings: Settings) -> None:
    """Let this socket, bound to the address that the settings name, listen.

    Raises:
        StartupError: another one does: many can be bound to one port.
    """
    try:
        bound.listen(BACKLOG)
    except OSError as exc:
        raise _unusable(settings.host, settings.port, exc) from exc


def announce(bound: socket.socket) -> None:
    """Log where this socket can be reached."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if bound.family == socket.AF_INET6 else host
    _LOG.info("listening on http://%s:%d", shown, port)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to the address; ``shared``: others that are so too may listen there beside it (SO_REUSEPORT).

    Raises:
        StartupError: the address cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
    except OSError as exc:
        found.close()
        raise _unusable(host, port, exc) from exc
    return found


def _unusable(host: str, port: int, exc: OSError) -> StartupError:
    return StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")
