"""Log formats and the access log line."""

import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from service import __version__

State = Mapping[str, Any]
"""What is known of a request: ``request_id`` (str), and as far as it came ``peer`` and ``caller`` (str), ``api_key``
(the name of the caller's key), ``trace`` (`TraceContext`), ``spans`` (`RequestSpans`, if the trace is recorded),
``model`` (`name/version`), ``rows`` and ``steps`` (int, as requested), ``queue_s`` and ``compute_s`` (float),
``request_bytes`` and ``response_bytes`` (int), and ``problem``, the stable code of an error response."""
Observe = Callable[[str, int, float, State], None]
"""Called with every finished request: route template or `unmatched`, status (499: the client disconnected), seconds,
and the request's state."""
REQUEST_ID_PATTERN: Final = "[A-Za-z0-9._-]{1,128}"
"""A valid value of the header X-Request-ID, as a regular expression."""
_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)
_STATE_FIELDS: Final = {
    "caller": "caller",
    "peer": "peer",
    "model": "model",
    "rows": "rows",
    "steps": "steps",
    "problem": "code",
    "request_bytes": "request_bytes",
    "response_bytes": "response_bytes",
}
_SECONDS: Final = {"queue_s": "queue_ms", "compute_s": "compute_ms"}
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
    """One JSON object a line: time (UTC), level, logger, message, version, a request's fields, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "version": __version__,
        }
        request = getattr(record, "request", None)
        if request is not None:
            line |= _fields(record, request)
        elif hasattr(record, "request_id"):
            line["request_id"] = record.request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def choose_request_id(given: str | None) -> str:
    """The caller's request id if it is a valid one, else a random one."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def _fields(record: logging.LogRecord, request: State) -> dict[str, Any]:
    """The fields of an access log line."""
    request_id, method, route, status, milliseconds = record.args or ()
    fields = {"request_id": request_id, "method": method, "route": route, "status": status, "ms": milliseconds}
    fields |= {name: request[key] for key, name in _STATE_FIELDS.items() if request.get(key) is not None}
    fields |= {name: round(request[key] * 1e3, 3) for key, name in _SECONDS.items() if key in request}
    trace = request.get("trace")
    if trace is not None:
        fields |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
    return fields


def log_request(method: str, route: str, status: int, seconds: float, state: State) -> None:
    """Write the access log line of a finished request; ``state`` must not change any more."""
    if _access.isEnabledFor(logging.INFO):
        values = (state["request_id"], method, route, status, round(seconds * 1000, 1))
        # Not `info`, which searches the stack for the line that called it. The thread that writes picks the fields.
        record = _access.makeRecord(_access.name, logging.INFO, __file__, 0, _LINE, values, None)
        record.request = state
        _access.handle(record)
