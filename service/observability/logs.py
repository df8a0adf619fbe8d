"""The log: what identifies a request, the access log line, the formats, and the thread that writes
them.
"""

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TextIO

from service import __version__

# A later version may append fields after a dash; version ff is invalid.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
SAMPLED: Final = 1
# sampled, and the random flag of level 2; the others are zero when they are passed on
_KNOWN_FLAGS: Final = 3
REQUEST_ID_PATTERN: Final = "[A-Za-z0-9._-]{1,128}"  # of the header X-Request-ID
_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)
_FIELDS: Final = ("caller", "peer", "model", "rows", "steps", "request_bytes", "response_bytes")
MAX_WAITING: Final = 10_000  # lines to be written, some megabytes; further ones are dropped
_FLUSH_S: Final = 1.0
_LINE: Final = "%s %s %s %d %.1f ms"
# fields of a line of text
_TEXT: Final = ("code", "model", "rows", "queue_ms", "compute_ms", "caller")
_access = logging.getLogger("service.access")


class TraceContext(NamedTuple):
    """A position in a trace: the W3C Trace Context, https://www.w3.org/TR/trace-context/."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    flags: int  # 1 if the trace is recorded, 2 if its id is random

    @property
    def traceparent(self) -> str:
        """The value of the header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


class RequestRecord:
    """What log, metrics and traces see of a request; None for what it did not come to."""

    request_id = ""
    method = ""
    endpoint = ""  # the template of its route
    status = 500
    peer: str | None = None
    caller = ""  # the fairness key
    api_key: str | None = None  # the name of the caller's key
    trace: TraceContext | None = None
    model: str | None = None  # `name/version`
    rows: int | None = None  # as requested
    steps: int | None = None
    seconds: dict[str, float]  # by part
    request_bytes: int | None = None  # once the body is read
    response_bytes = 0
    problem: str | None = None  # the stable code of an error response


def parse_traceparent(values: Sequence[str]) -> TraceContext | None:
    """The trace context of a request with these headers `traceparent`.

    None if there is none or an invalid one, which the standard wants ignored.
    """
    found = _TRACEPARENT.fullmatch(values[0].strip(" \t")) if len(values) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)


def choose_request_id(given: str | None) -> str:
    """The caller's request id if it is a valid one, else a random one."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def log_request(request: RequestRecord, seconds: float) -> None:
    """Write the access log line of a finished request, which must not change any more."""
    if _access.isEnabledFor(logging.INFO):
        milliseconds = round(seconds * 1000, 1)
        values = request.request_id, request.method, request.endpoint, request.status, milliseconds
        # Not `info`, which searches the stack for the line that called it. The thread that writes
        # picks the fields.
        record = _access.makeRecord(_access.name, logging.INFO, __file__, 0, _LINE, values, None)
        record.request = request
        _access.handle(record)


class TextFormatter(logging.Formatter):
    """A line of text: time, process, level, message, and some of a request's fields as
    `name=value`.
    """

    def __init__(self) -> None:
        super().__init__(f"%(asctime)s {os.getpid()} %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; a traceback takes further lines."""
        text = super().format(record)
        fields = _fields(record, record.request) if hasattr(record, "request") else {}
        return " ".join([text, *[f"{name}={fields[name]}" for name in _TEXT if name in fields]])


@lru_cache(maxsize=1)  # many lines share a second
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, version, process, a request's
    fields, a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "version": __version__,
            "pid": os.getpid(),
        }
        if hasattr(record, "request"):
            line |= _fields(record, record.request)
        elif hasattr(record, "request_id"):
            line["request_id"] = record.request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _fields(record: logging.LogRecord, request: RequestRecord) -> dict[str, Any]:
    names = ("request_id", "method", "route", "status", "ms")  # of what `_LINE` shows
    fields: dict[str, Any] = dict(zip(names, record.args or (), strict=True))
    fields |= {key: value for key in _FIELDS if (value := getattr(request, key)) is not None}
    if request.problem is not None:
        fields["code"] = request.problem
    if request.seconds.get("compute"):  # a model has run
        for part in ("queue", "compute"):
            fields[f"{part}_ms"] = round(request.seconds[part] * 1e3, 3)
    trace = request.trace
    if trace is not None:
        fields |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
    return fields


class QueuedHandler(logging.Handler):
    """Writes records to ``stream`` in a thread of its own, so that a pipe that nobody reads does
    not stop the service.

    It drops those beyond `MAX_WAITING` waiting ones, and those that the stream does not take, as on
    a full disk.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.on_drop: Callable[[], object] = lambda: None
        threading.Thread(target=self._run, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record, or count it as dropped."""
        if self._waiting.qsize() >= MAX_WAITING:
            self.on_drop()
        else:
            self._waiting.put(partial(self._write, record))

    def flush(self) -> None:
        """Wait until everything is written, at most a second."""
        written = threading.Event()
        self._waiting.put(written.set)
        written.wait(_FLUSH_S)

    def _run(self) -> None:
        while True:
            self._waiting.get()()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self._stream.write(f"{self.format(record)}\n")  # stderr flushes every line
        except OSError:
            self.on_drop()
        except Exception:  # a defect of the line that logs
            self.handleError(record)


def flush_log() -> None:
    """Write every line of the log; waits at most a second for each handler."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def count_drops(on_drop: Callable[[], object]) -> None:
    """Call ``on_drop`` for each line of the log that is dropped from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, QueuedHandler):
            handler.on_drop = on_drop
