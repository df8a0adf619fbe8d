"""The outermost middleware: it sets the request id, arrival time and caller, and logs and counts the request.

`service.app` stacks the middleware in this order, from the outside in:

1. `AccessLogMiddleware`.
2. `CorsMiddleware`, if origins are configured; it is outside the others so that error responses have its headers.
3. `ErrorMiddleware`: turns an exception that nothing else handles into a problem document.
4. `ConcurrencyLimitMiddleware`: the limit on requests in flight, and 503 while draining.
5. `AuthMiddleware`, if keys are configured, and `RateLimitMiddleware`, if rates are limited.
6. `FastRouter`: calls the endpoints that run a model without the framework's routing.

`service.server` rejects some requests before all of them. Endpoints find in ``scope["state"]`` what
`service.observability.logs.State` lists, and ``arrival`` (`time.monotonic()` seconds when the headers were complete).
``caller`` is the fairness key.
"""

import time
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware.client_address import Network, address_key, peer_key
from service.api.middleware.endpoint_names import EndpointNames
from service.observability.logs import Observe, choose_request_id, log_request, parse_traceparent

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

CLIENT_GONE: Final = 499
_TRACEPARENT: Final = b"traceparent"


class AccessLogMiddleware:
    """Gives a request its id, arrival time and caller, and records how it ended.

    The log line and the metrics name the route's template, never the path, a key or a body. FastAPI sets the template
    of routes made with `app.get` or `APIRouter(prefix=…)`; not of mounts, nor a prefix given to `include_router`.

    Args:
        app: the application behind it.
        trusted_proxies: networks whose X-Forwarded-For is believed.
        observe: called once for every request.
        endpoints: names the endpoint of a request that is refused before it is routed.
        probes: paths of probes and scrapes, whose requests begin no trace.
        log_probes: whether they are logged also if they succeed.
        tracing: makes the spans of requests; None for no spans.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        trusted_proxies: Sequence[Network] = (),
        observe: Observe | None = None,
        endpoints: EndpointNames | None = None,
        probes: Collection[str] = (),
        log_probes: bool = False,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._app = app
        self._trusted = trusted_proxies
        self._observe = observe
        self._endpoints = endpoints or EndpointNames()
        self._probes, self._log_probes = frozenset(probes), log_probes
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a client that disconnects is no failure of the service."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        arrival = state.get("arrival") or time.monotonic()  # the protocol sets it for requests that it delays
        headers = Headers(scope=scope)
        request_id = choose_request_id(headers.get("x-request-id"))
        peer = scope["client"][0] if scope.get("client") else None
        response = ResponseState(send, request_id)
        state.update(request_id=request_id, arrival=arrival, response=response, peer=peer)
        state["caller"] = (
            peer_key(peer, headers.getlist("x-forwarded-for"), self._trusted) if self._trusted else address_key(peer)
        )
        if self._tracing is not None or "traceparent" in headers:
            self._start_trace(headers, scope["path"], state)
        try:
            await self._app(scope, receive, response.send)
        except ClientDisconnect:
            response.status = CLIENT_GONE
        else:
            if not response.complete:  # the server cuts the connection, so the status that was sent does not hold
                response.status = 500
        finally:
            del state["response"]  # the cycle request, state, response would wait for the garbage collector
            state["response_bytes"] = response.body_bytes
            self._record(scope, state, response.status, time.monotonic() - arrival)

    def _start_trace(self, headers: Headers, path: str, state: dict[str, Any]) -> None:
        """Continue the caller's trace, or begin one; probes and scrapes begin none."""
        trace = parse_traceparent(headers.getlist("traceparent"))
        if self._tracing is not None and (trace is not None or path not in self._probes):
            spans = self._tracing.start_request(state["arrival"], trace, headers.getlist("tracestate"))
            trace = spans.position
            if spans.recorded:
                state["spans"] = spans
        if trace is not None:
            state["trace"] = trace
            state["response"].headers.append((_TRACEPARENT, trace.traceparent.encode("ascii")))

    def _record(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        """Log and count a request that has ended."""
        path, route = scope["path"], getattr(scope.get("route"), "path_format", None)
        if route is None:
            route = self._endpoints.find(path.removeprefix(scope.get("root_path", "")))
        if "spans" in state:
            state["spans"].end(scope["method"], route, status, state)
        if self._log_probes or path not in self._probes or status >= HTTPStatus.BAD_REQUEST:
            log_request(scope["method"], route, status, seconds, state)
        if self._observe is not None:
            self._observe(route, status, seconds, state)


class ResponseState:
    """How far the response of a request is; adds headers to it, at first the request id alone.

    Args:
        send: the server's ASGI channel.
        request_id: for the header X-Request-ID.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self.status = 500
        self.started = False
        self.complete = False
        self.body_bytes = 0
        self.headers = [(b"x-request-id", request_id.encode("ascii"))]
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a message on to the server."""
        self.started = True
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.headers]
        elif message["type"] == "http.response.body":
            self.body_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)
