"""Log formats and the access log line."""

import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

Observe = Callable[[str, int, float, Mapping[str, Any]], None]
"""Called with every finished request: route template or `unmatched`, status (499: the client disconnected), seconds,
and the request's state, in which endpoints set ``model`` and problem answers set ``problem``, their stable code."""
REQUEST_ID_PATTERN: Final = "[A-Za-z0-9._-]{1,128}"
"""A valid value of the header X-Request-ID, as a regular expression."""
_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)
_FIELDS: Final = ("request_id", "method", "route", "status", "ms")  # what access log records carry beside the text
_LINE: Final = "%s %s %s %d %.1f ms"
_access = logging.getLogger("service.access")


@lru_cache(maxsize=1)  # many lines share a second
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=1)
def _local(seconds: int) -> str:
    return time.strftime(logging.Formatter.default_time_format, time.localtime(seconds))


class TextFormatter(logging.Formatter):
    """One line: local time, level, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """As in `logging.Formatter`, but formatted once a second."""
        return f"{_local(int(record.created))},{int(record.msecs):03d}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, a request's fields, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def choose_request_id(given: str | None) -> str:
    """The caller's request id if it is a valid one, else a random one."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def log_request(request_id: str, method: str, route: str, status: int, seconds: float) -> None:
    """Write the access log line of a finished request."""
    if _access.isEnabledFor(logging.INFO):
        values = (request_id, method, route, status, round(seconds * 1000, 1))
        fields = dict(zip(_FIELDS, values, strict=True))
        # Not `info`, which searches the stack for the line that called it.
        _access.handle(_access.makeRecord(_access.name, logging.INFO, __file__, 0, _LINE, values, None, extra=fields))
