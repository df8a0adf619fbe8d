"""What happens around every request, as pure ASGI middleware.

From the outside in:

- `RequestContext`: request id, arrival time, caller; the access log line and the metrics, whatever happens inside.
- `Cors`, where origins are configured: outside of all that answers, so that errors carry its headers too.
- `CatchAll`: an exception nobody foresaw becomes a problem.
- `Gate`: the limit on requests in flight, and refusal while draining.
- `service.api.middleware.auth.Authenticator`, and `service.api.middleware.rate_limit.Quota` where there are quotas.

In front of them all, where uvicorn is the server, stands `service.server.early_rejection`.

Endpoints find in ``request.state``: ``request_id`` (str), ``arrival`` (`time.monotonic()` seconds when the headers
were there) and ``caller`` (str, the key under which fairness counts).
- `service.api.middleware.fast_routes.Direct`: the endpoints that are called all day, without the framework's routing.
"""

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.http.problems import log_failure, request_id_of, send_problem
from service.api.middleware.auth import HEALTH_PATHS, networks, peer_key
from service.domain.errors import Draining, MalformedRequest, TooManyConnections

Observe = Callable[[str, int, float, Mapping[str, Any]], None]
"""Told of every request: route template or `unmatched`, status (499: the client left), seconds, and the request's
state, in which endpoints note ``model`` and error answers ``problem``, their stable code."""

CLIENT_GONE: Final = 499
UNMATCHED: Final = "unmatched"
TOO_MANY: Final = "too many requests are in flight"
EXPOSED_HEADERS: Final = (
    "Retry-After",
    "Server-Timing",
    "X-IGN-Distance",
    "X-IGN-Drift",
    "X-IGN-Model",
    "X-IGN-Seed",
    "X-IGN-Steps",
    "X-Request-ID",
)
_ALLOWED_HEADERS: Final = (
    "Authorization",
    "Inference-Header-Content-Length",
    "X-Request-ID",
    "X-Request-Timeout",
)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FIELDS: Final = ("request_id", "method", "route", "status", "ms")  # what our log records carry beside the text
_LINE: Final = "%s %s %s %d %.1f ms"

_access = logging.getLogger("service.access")


@lru_cache(maxsize=1)  # many lines have one second
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
        """As `logging.Formatter` has it, made once a second."""
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


class RequestContext:
    """Gives a request its id, arrival time and caller, and records how it ended. Outermost.

    The log line and the metrics name the route's template, never the path, a key or a body. FastAPI tells the template
    of its own routes only (`app.get`, `APIRouter(prefix=…)`), not of mounts, nor a prefix given to `include_router`.

    Args:
        app: the application behind it.
        trusted_proxies: CIDR networks whose X-Forwarded-For is believed.
        observe: called once per request.

    Raises:
        StartupError: a trusted proxy is no network.
    """

    def __init__(self, app: ASGIApp, *, trusted_proxies: Sequence[str] = (), observe: Observe | None = None) -> None:
        self._app = app
        self._trusted = networks(trusted_proxies)
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a client that left is nobody's failure."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        arrival = state.get("arrival") or time.monotonic()  # there: it had to wait for its turn since
        request_id = self._enter(scope, arrival)
        answer = _Answer(send, request_id)
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            answer.status = CLIENT_GONE
        else:
            if not answer.complete:  # the connection will be cut; the status that was sent is no longer true
                answer.status = 500
        finally:
            route = getattr(scope.get("route"), "path_format", None) or UNMATCHED
            seconds = time.monotonic() - arrival
            record(self._observe, request_id, scope["method"], route, answer.status, seconds, state)

    def _enter(self, scope: Scope, arrival: float) -> str:
        headers = Headers(scope=scope)
        request_id = identify(headers.get("x-request-id", ""))
        peer = scope["client"][0] if scope.get("client") else None
        forwarded = headers.getlist("x-forwarded-for") if self._trusted else ()
        caller = peer_key(peer, forwarded, self._trusted)
        scope["state"].update(request_id=request_id, arrival=arrival, caller=caller)
        return request_id


def identify(given: str) -> str:
    """A request's id: the caller's own where it is a valid one."""
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def record(
    observe: Observe | None,
    request_id: str,
    method: str,
    route: str,
    status: int,
    seconds: float,
    state: Mapping[str, Any],
) -> None:
    """Write a finished request to the access log, and tell whoever counts."""
    if _access.isEnabledFor(logging.INFO):
        values = (request_id, method, route, status, round(seconds * 1000, 1))
        fields = dict(zip(_FIELDS, values, strict=True))
        # Not `info`, which would look up the line that called it.
        _access.handle(_access.makeRecord(_access.name, logging.INFO, __file__, 0, _LINE, values, None, extra=fields))
    if observe is not None:
        observe(route, status, seconds, state)


class _Answer:
    """Marks an answer with the request id, and knows how far it got."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.status = 500
        self.complete = False
        self._send = send
        self._request_id = request_id.encode("ascii")

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id)]
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)


class Cors(CORSMiddleware):
    """Starlette's CORS, exposing this service's headers and refusing a preflight with a problem.

    Args:
        app: the application behind it.
        origins: origins allowed to call, or `*`.
    """

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                response = self.preflight_response(headers)
                if response.status_code >= 400:
                    await send_problem(scope, send, MalformedRequest(bytes(response.body).decode()))
                    return
        await super().__call__(scope, receive, send)


class CatchAll:
    """Turns an exception into a problem, unless the answer is under way: then it is only logged and cut off.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            raise
        except Exception as exc:
            if started:
                log_failure(exc, request_id_of(scope))
            else:
                await send_problem(scope, send, exc)


class Traffic:
    """The requests in flight, and whether new ones are taken. Belongs to one event loop."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._era = _Era()
        self._past: list[_Era] = []

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request for as long as the block runs."""
        era = self._era
        era.requests += 1
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()
            era.requests -= 1
            if era.requests == 0 and era is not self._era:
                era.over.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    async def settled(self) -> None:
        """Wait until those in flight at the time of the call are over, whoever comes later.

        What had a name before that time and has none now is then in nobody's hands.
        """
        self._past = [era for era in (*self._past, self._era) if era.requests]
        self._era = _Era()
        for era in list(self._past):
            await era.over.wait()


class _Era:
    """The requests that came between two calls of `Traffic.settled`."""

    def __init__(self) -> None:
        self.requests = 0
        self.over = asyncio.Event()  # no request is left, and no other can come


class Gate:
    """Refuses requests beyond a limit, and all new ones while draining; health and metrics always pass.

    Args:
        app: the application behind it.
        traffic: what it counts in; whoever drains sets its flag.
        limit: most requests in flight, each from its headers to the end of its answer.
        open_paths: exact paths that are neither counted nor refused.
    """

    def __init__(
        self, app: ASGIApp, *, traffic: Traffic, limit: int, open_paths: Collection[str] = HEALTH_PATHS
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._limit = limit
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
        elif self._traffic.draining:
            await send_problem(scope, send, Draining("the service is shutting down"))
        elif self._traffic.in_flight >= self._limit:
            await send_problem(scope, send, TooManyConnections(TOO_MANY))
        else:
            with self._traffic.request():
                await self._app(scope, receive, send)
