"""The limit of open files: raise it, and derive from it how many connections may be open."""

import contextlib
import logging
import os
import resource
from typing import Final

from service.domain.errors import StartupError

_LOG = logging.getLogger("service")
RESERVED: Final = 256
"""Files kept for models, listeners, the log and threads."""
_MIN_FILES: Final = 64


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard limit; containers and systemd units often start with 1024.

    Raises:
        StartupError: the limit is too low for the service to start.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the system may allow less than the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = _soft_limit()
    if files < _MIN_FILES:
        raise StartupError(f"only {files} files may be open (ulimit -n); the service needs {_MIN_FILES}")


def connection_limit(wanted: int) -> int:
    """How many connections may be open: ``wanted``, or fewer if the limit of open files is low. Logs a warning then."""
    files = _soft_limit()
    possible = max(files - RESERVED, files // 2)
    if possible >= wanted:
        return wanted
    _LOG.warning(
        "at most %d connections may be open, not IGN_MAX_OPEN_CONNECTIONS=%d: only %d files may be open (ulimit -n)",
        possible,
        wanted,
        files,
    )
    return possible


def is_one_free() -> bool:
    """Whether this process can open another file or connection."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    return True


def _soft_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft
