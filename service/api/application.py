"""The service as one ASGI callable.

Every request, of every size and kind, passes the same functions:

    server ─▶ Application.__call__     request id, arrival, caller, trace, errors of the head
                 │
                 ├─ CorsMiddleware     only if origins are configured; preflights end here
                 │
                 ├─ _admit             API key, draining, requests in flight, rate
                 │
                 ├─ Pipeline.run       an endpoint that runs a model
                 │  or FastAPI         all others: information, documents, model repository
                 │
                 ├─ _record            log line, metrics, trace
                 │
                 └─ Exchange.finish    an error waits for earlier ones of its caller, then it is sent

Endpoints find in ``scope["state"]`` what `service.observability.logs.State` lists, and ``arrival``, the
seconds on `AppState.clock` when the head was complete. ``caller`` is the fairness key. `service.server` adds
``rejected``, the error of a head that it did not accept, and ``is_received`` once the whole body has arrived.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import (
    ADMIN_PATHS,
    HEALTH_PATHS,
    METRICS_PATH,
    ApiKeys,
    PathSet,
    address_key,
    check_origin,
    open_paths,
    peer_key,
)
from service.api.app_state import AppState
from service.api.cors import CorsMiddleware
from service.api.heads import WHOLE_RESPONSE, check_head
from service.api.limits import CallerRates, Epoch, ErrorPace
from service.api.pipeline import Endpoint, Pipeline
from service.api.problems import describe, log_failure, problem_response
from service.api.request import ApiRequest, NotModified, RequestHeaders
from service.domain.errors import Draining, IgnError
from service.observability.logs import choose_request_id, log_request, parse_traceparent

CLIENT_GONE: Final = 499
UNMATCHED: Final = "unmatched"
_CACHED, _MAX_PATH = 1024, 256  # how many paths are remembered, and the longest of them
_DISCARD_BYTES: Final = 1 << 26
_UNREAD_BYTES, _MAX_DIGITS = 1 << 16, 10  # of a body that is received without a valid key; of its Content-Length
_DISCARD_S, _QUIET_S = 30.0, 0.5  # for the whole of an unwanted body, and for the next part of it


class Match(NamedTuple):
    """What a path belongs to: a template for logs and metrics, and by method the endpoints that run a model."""

    template: str
    endpoints: Mapping[str, Endpoint] = {}
    parameters: Mapping[str, str] = {}


class RouteTable:
    """Finds the template of a path and its endpoint, for every request before it is admitted.

    Of ``routes`` those without a template, such as a mount, are left out; ``endpoints`` are those that run a model.
    """

    def __init__(self, routes: Iterable[Any], endpoints: Iterable[Endpoint]) -> None:
        models: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            models.setdefault(endpoint.template, {}).update(dict.fromkeys(endpoint.methods, endpoint))
        templates = {route.path_format: route.path_regex for route in routes if hasattr(route, "path_format")}
        self._exact = {path: Match(path, models.get(path, {})) for path in templates if "{" not in path}
        self._patterns = [(regex, path, models.get(path, {})) for path, regex in templates.items() if "{" in path]
        self._find_cached = lru_cache(maxsize=_CACHED)(self._find)

    def find(self, path: str) -> Match:
        """The first route that matches, or one with the template `unmatched`."""
        return self._find_cached(path) if len(path) <= _MAX_PATH else self._find(path)

    def _find(self, path: str) -> Match:
        if path in self._exact:
            return self._exact[path]
        for regex, template, endpoints in self._patterns:
            match = regex.match(path)
            if match is not None:
                return Match(template, endpoints, match.groupdict())
        return Match(UNMATCHED)


class Exchange:
    """One request and how far its response is. It adds headers to the response, at first the request id alone."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        if root := scope.get("root_path"):
            self.path = self.path.removeprefix(root)
        self.headers = RequestHeaders(scope["headers"])
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.error: IgnError | None = None  # of the head
        self.match = Match(UNMATCHED)
        self.epoch: Epoch | None = None
        self.status = 500
        self.started = self.complete = False
        self.sent_bytes = 0
        self.added: list[tuple[bytes, bytes]] = []
        self.closes = False
        self._head: Message = {}
        self.held: Message = {}  # the last part of the body, until `finish`
        self._send_whole = scope.get("extensions", {}).pop(WHOLE_RESPONSE, None)  # it holds the scope

    async def send(self, message: Message) -> None:
        """Pass a message of the response on to the server; the head waits for the first part of the body."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.added]
            self._head = message
            if "request_bytes" not in self.state and self._has_body():  # it was not read
                if self._is_unwanted():
                    message["headers"].append((b"connection", b"close"))
                self.closes = self._is_last(message["headers"])
            return
        body = message.get("body", b"")
        self.sent_bytes += len(body)
        self.complete = not message.get("more_body", False)
        if self.complete and (self.is_paced or self.closes):
            self.held = message
            return
        if self.complete and self._send_whole and not self.started and self.method != "HEAD":
            self.started = self._send_whole(self.status, self._head["headers"], body)
            if self.started:
                return
        await self._send_on(message)

    async def _send_on(self, message: Message) -> None:
        if not self.started:
            self.started = True
            await self._send(self._head)
        await self._send(message)

    async def finish(self, pace: ErrorPace) -> None:
        """Send the last part of a response, which `send` has held back."""
        if self.is_paced:
            await pace.wait(self.state["caller"])
        await self._send_on({**self.held, "more_body": self.closes})
        if self.closes:
            await self._discard_body()
            await self._send({"type": "http.response.body"})

    @property
    def is_paced(self) -> bool:
        """Whether the response waits for earlier ones of its caller: an error, or a scrape, whose text is long."""
        return self.status >= HTTPStatus.BAD_REQUEST or self.path == METRICS_PATH

    def _is_unwanted(self) -> bool:
        """Whether the body of a caller without a valid key is too long to be received and thrown away."""
        length = self.headers.get("content-length", "")
        is_short = length.isdecimal() and len(length) < _MAX_DIGITS and int(length) <= _UNREAD_BYTES
        return self.status == HTTPStatus.UNAUTHORIZED and not is_short

    def _has_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or self.headers.get("transfer-encoding") is not None

    def _is_last(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether the server closes the connection after the response."""
        closes = "close" in self.headers.get("connection", "").lower() or (b"connection", b"close") in headers
        return closes or self.scope.get("http_version") == "1.0"

    async def _discard_body(self) -> None:
        """Read the rest of a body that nobody wants, within limits.

        The server closes the connection next. If the client were still sending, the system would then reset the
        connection, and the client could lose the response.
        """
        if self._is_unwanted():
            await asyncio.sleep(_QUIET_S)  # the client may read the response; then the system resets the connection
            return
        size = 0
        try:
            async with asyncio.timeout(_DISCARD_S):
                while size < _DISCARD_BYTES:
                    async with asyncio.timeout(_QUIET_S):
                        message = await self.receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


class Application:
    """See the module; this is what the server calls. None stands for no API ``keys`` and no limit of ``rates``."""

    def __init__(
        self,
        services: AppState,
        fastapi: FastAPI,
        routes: RouteTable,
        *,
        keys: ApiKeys | None = None,
        rates: CallerRates | None = None,
    ) -> None:
        self.services, self.fastapi = services, fastapi
        self._routes, self._pipeline, self._pace = routes, Pipeline(), ErrorPace()
        self._keys, self._rates = keys, rates
        settings = services.settings
        self._settings, self._in_flight, self._tracing = settings, services.in_flight, services.tracing
        self._keyless = PathSet(open_paths(settings.private_endpoints))
        self._unlimited, self._admin, self._probes = (
            PathSet(open_paths()),
            PathSet(ADMIN_PATHS),
            frozenset(HEALTH_PATHS),
        )
        self._inner: ASGIApp = self._serve
        if settings.cors_origins:
            self._inner = CorsMiddleware(self._serve, origins=settings.cors_origins, reject=self._send_problem)
        self._recorded: dict[tuple[str, int, str | None], list[tuple[float, Mapping[str, Any]]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.fastapi(scope, receive, send)
            return
        exchange = self._begin(scope, receive, send)
        try:
            app = self._inner if exchange.error is None else self._serve  # CORS answers preflights by itself
            await app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_GONE
        else:
            if not exchange.complete:  # the server cuts the connection, so the status that was sent does not hold
                exchange.status = 500
        finally:
            del exchange.state["exchange"]  # the cycle would wait for the garbage collector
            self._record(exchange)
        if exchange.held:
            await exchange.finish(self._pace)

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        exchange = Exchange(scope, receive, send)
        exchange.match = self._routes.find(exchange.path)
        state, headers = exchange.state, exchange.headers
        peer = scope["client"][0] if scope.get("client") else None
        request_id = choose_request_id(headers.get("x-request-id"))
        proxies = self._settings.trusted_proxies
        state["caller"] = peer_key(peer, headers.getlist("x-forwarded-for"), proxies) if proxies else address_key(peer)
        state.update(request_id=request_id, peer=peer, exchange=exchange)
        # The server sets it for requests that wait on their connection.
        state.setdefault("arrival", self.services.clock())
        exchange.added.append((b"x-request-id", request_id.encode("ascii")))
        exchange.error = state.get("rejected") or check_head(scope, headers.fields)
        traces = headers.getlist("traceparent")
        if traces or self._tracing is not None:
            self._start_trace(exchange, traces)
        return exchange

    def _start_trace(self, exchange: Exchange, traceparents: list[str]) -> None:
        """Continue the caller's trace, or begin one; probes and scrapes begin none."""
        state, trace = exchange.state, parse_traceparent(traceparents)
        if self._tracing is not None and (trace is not None or exchange.path not in self._probes):
            spans = self._tracing.start_request(state["arrival"], trace, exchange.headers.getlist("tracestate"))
            trace = spans.position
            if spans.recorded:
                state["spans"] = spans
        if trace is not None:
            state["trace"] = trace
            exchange.added.append((b"traceparent", trace.traceparent.encode("ascii")))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the request and run it; an exception becomes a problem document."""
        exchange: Exchange = scope["state"]["exchange"]
        try:
            match = exchange.match
            self._admit(exchange)
            if endpoint := match.endpoints.get(exchange.method):
                api = ApiRequest(
                    self.services, match.template, scope["query_string"], exchange.headers, exchange.state, receive
                )
                await self._pipeline.run(endpoint, api, match.parameters, send)
            else:
                await self.fastapi(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as exc:
            if exchange.started:
                log_failure(exc, exchange.state["request_id"])
            else:
                await self._send_problem(scope, send, exc)
            exc.__traceback__ = None  # its frames may hold it: break the cycle

    def _admit(self, exchange: Exchange) -> None:
        """Let the request in, and count it.

        Raises `IgnError` if the server rejected its head, the head is wrong, the key is missing, unknown or without the
        scope, a page of another site may have sent it, the service drains, too many requests are in flight, or the
        caller is beyond its rate.
        """
        state, path, in_flight = exchange.state, exchange.path, self._in_flight
        if exchange.error is not None:
            exchange.added.append((b"connection", b"close"))  # where the next request begins is in doubt
            raise exchange.error
        if self._keys is None:
            if exchange.method == "POST" and ("*" not in self._settings.cors_origins or path in self._admin):
                check_origin(exchange.headers, self._settings.cors_origins)
        elif path not in self._keyless:
            self._keys.identify(exchange.headers, state, "admin" if path in self._admin else "infer")
        if path not in self._probes:
            if in_flight.draining:
                raise Draining("the service is shutting down")
            exchange.epoch = in_flight.enter(state["caller"])
        if self._rates is not None and path not in self._unlimited:
            self._rates.count(state)

    async def _send_problem(self, scope: Scope, send: Send, exc: Exception) -> None:
        state = scope["state"]
        if isinstance(exc, NotModified):
            response = Response(status_code=HTTPStatus.NOT_MODIFIED, headers=exc.headers)
        else:
            problem = describe(exc)
            state["problem"] = problem.code
            if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                log_failure(exc, state["request_id"])
            response = problem_response(problem, state["request_id"], state["exchange"].path)
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": bytes(response.body)})

    def _record(self, exchange: Exchange) -> None:
        """Count and log a request that has ended."""
        state, status = exchange.state, exchange.status
        if exchange.epoch is not None:
            self._in_flight.leave(exchange.epoch, state)
        state["response_bytes"] = exchange.sent_bytes
        endpoint = exchange.match.template
        seconds = self.services.clock() - state["arrival"]
        if "spans" in state:
            state["spans"].end(exchange.method, endpoint, status, state)
        is_probe = exchange.path in self._probes and not self._settings.access_log_probes
        if not is_probe or status >= HTTPStatus.BAD_REQUEST:
            log_request(exchange.method, endpoint, status, seconds, state)
        if not self._recorded:
            asyncio.get_running_loop().call_soon(self._observe)
        self._recorded.setdefault((endpoint, status, state.get("model")), []).append((seconds, state))

    def _observe(self) -> None:
        """Count the requests that ended in this turn of the event loop, those of one kind together."""
        recorded, self._recorded = self._recorded, {}
        for (endpoint, status, _), ended in recorded.items():
            self.services.metrics.requests(endpoint, status, ended)
