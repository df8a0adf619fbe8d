"""The service as one ASGI callable; docs/architecture.md draws the way of a request.

While it runs, ``scope["state"]["request"]`` is the `ApiRequest`. `service.server` sets ``arrival``
there, the seconds on `AppState.clock` when the head was complete, ``rejected``, the error of a head
that it did not accept, and ``is_received`` once the whole body has arrived. This module sets
``is_unwanted`` if the body must not be received and thrown away.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.access import ApiKey, address_key, identify, peer_key
from service.api.app_state import AppState
from service.api.message import check_head, check_origin
from service.api.pipeline import Pipeline, Stages
from service.api.problems import NoEndpoint, WrongMethod, log_failure, problem_response
from service.api.request import ApiRequest, NotModified
from service.api.table import Endpoint, RouteTable
from service.domain.errors import Draining, MalformedRequest, UnauthorizedError, forget_frames
from service.observability.logs import choose_request_id, log_request, parse_traceparent

CLIENT_GONE: Final = 499
EXPOSED_HEADERS: Final = (
    "ETag",
    "Retry-After",
    "Server-Timing",
    "traceparent",
    "X-IGN-Distance",
    "X-IGN-Drift",
    "X-IGN-Model",
    "X-IGN-Seed",
    "X-IGN-Steps",
    "X-Request-ID",
    "X-Should-Retry",
)
_ALLOWED_HEADERS: Final = (
    "Authorization",
    "Inference-Header-Content-Length",
    "traceparent",
    "tracestate",
    "X-Request-ID",
    "X-Request-Timeout",
)


@cache  # one line of a process
def _warn_of_proxy() -> None:
    logging.getLogger("service").warning(
        "X-Forwarded-For is ignored: if a proxy sends it, set IGN_TRUSTED_PROXIES to the proxy's "
        "address, or all its callers count as one"
    )


class CorsMiddleware(CORSMiddleware):
    """Starlette's `CORSMiddleware` with this service's headers."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The response to a preflight; raises `MalformedRequest` for a bad one."""
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            raise MalformedRequest(bytes(response.body).decode())
        return response


class Application:
    """See the module; this is what the server calls.

    ``keys`` are the API keys by their digests. ``fastapi`` answers what runs no model, and has the
    lifespan, within which alone requests are answered.
    """

    def __init__(
        self,
        services: AppState,
        fastapi: FastAPI,
        routes: RouteTable,
        *,
        keys: Mapping[str, ApiKey],
    ) -> None:
        self.services = services
        self.fastapi = fastapi
        self._routes = routes
        self._pipeline = Pipeline()
        self._keys = keys
        settings = services.settings
        self._settings = settings
        self._keyed = settings.keyed
        self._in_flight = services.in_flight
        self._tracing = services.tracing
        self._inner: ASGIApp = self._serve
        if settings.cors_origins:
            self._inner = CorsMiddleware(self._serve, settings.cors_origins)
        self._recorded: dict[tuple[str, int, str | None], list[tuple[float, ApiRequest]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.fastapi(scope, receive, send)
            return
        request = self._begin(scope, receive, send)
        try:
            # CORS answers preflights by itself
            app = self._inner if request.error is None else self._serve
            await app(scope, receive, request.send)
        except ClientDisconnect as exc:
            request.status = CLIENT_GONE
            forget_frames(exc)
        except MalformedRequest as exc:  # a preflight
            await self._send_problem(scope, request.send, exc)
        else:
            # the server cuts the connection, so the status that was sent does not hold
            if not request.complete:
                request.status = HTTPStatus.INTERNAL_SERVER_ERROR
        finally:
            del request.state["request"]  # the cycle would wait for the garbage collector
            self._record(request)
        if request.held is not None:
            await request.send_held()
        request.release()

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> ApiRequest:
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        state = scope.setdefault("state", {})
        request = state["request"] = ApiRequest(
            self.services, scope, receive, send, self._routes.find(path), path
        )
        headers = request.headers
        proxies = self._settings.trusted_proxies
        request.request_id = choose_request_id(headers.get(b"x-request-id"))
        if proxies:
            request.caller = peer_key(request.peer, headers.getlist(b"x-forwarded-for"), proxies)
        else:
            request.caller = address_key(request.peer)
            if b"x-forwarded-for" in headers:
                _warn_of_proxy()
        request.added.append((b"x-request-id", request.request_id.encode("ascii")))
        request.error = state.get("rejected") or check_head(scope, headers)
        if self._tracing is not None or b"traceparent" in headers:
            self._start_trace(request, headers.getlist(b"traceparent"))
        return request

    def _start_trace(self, request: ApiRequest, traceparents: list[str]) -> None:
        """Continue the caller's trace, or begin one; probes and scrapes begin none."""
        trace = parse_traceparent(traceparents)
        if self._tracing is not None and (trace is not None or not request.route.is_probe):
            spans = self._tracing.start_request(
                request.arrival, trace, request.headers.getlist(b"tracestate")
            )
            trace = spans.position
            if spans.recorded:
                request.spans = spans
        if trace is not None:
            request.trace = trace
            request.added.append((b"traceparent", trace.traceparent.encode("ascii")))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the request and run it; an exception becomes a problem document."""
        request: ApiRequest = scope["state"]["request"]
        try:
            self._admit(request)
            endpoint: Endpoint | None = request.route.endpoints.get(request.method)
            if endpoint is None:
                allowed = ", ".join(sorted(request.route.endpoints))
                if not allowed:
                    raise NoEndpoint
                raise WrongMethod(f"this path takes {allowed}", allowed=allowed)
            if isinstance(endpoint.run, Stages):
                await self._pipeline.run(endpoint.run, request, send)
            else:
                # without FastAPI's middleware, which answers exceptions
                await self.fastapi.router(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as exc:
            if request.started:
                log_failure(exc, request.request_id)
            else:
                await self._send_problem(scope, send, exc)
            forget_frames(exc)

    def _admit(self, request: ApiRequest) -> None:
        """Let the request in, and count it.

        Raises `IgnError` if the server rejected its head, the head is wrong, the key is missing,
        unknown or without the scope, a page of another site may have sent it, the service drains,
        too many requests are in flight, or the caller is beyond its rate.
        """
        route = request.route
        in_flight = self._in_flight
        if request.error is not None:
            # where the next request begins is in doubt
            request.added.append((b"connection", b"close"))
            raise request.error
        if route.access in self._keyed:
            identify(self._keys, request, "admin" if route.access == "admin" else "infer")
        elif "key" not in self._keyed and request.method == "POST":
            origins = self._settings.cors_origins
            if "*" not in origins or route.access == "admin":
                check_origin(request.headers, origins)
        if not route.is_probe:
            if in_flight.draining:
                raise Draining("the service is shutting down")
            request.epoch = in_flight.enter(request.caller)
        rate = request.quota or self._settings.rate_limit
        if rate is not None and route.access in ("key", "admin"):
            self.services.rates.count(request.caller, rate)

    async def _send_problem(self, scope: Scope, send: Send, exc: Exception) -> None:
        request: ApiRequest = scope["state"]["request"]
        if isinstance(exc, UnauthorizedError) and request.has_large_body():
            request.added.append((b"connection", b"close"))
            request.state["is_unwanted"] = True
        if isinstance(exc, NotModified):
            response = Response(status_code=HTTPStatus.NOT_MODIFIED, headers=exc.headers)
        else:
            response = problem_response(request.describe(exc), request.request_id, request.path)
        await response(scope, request.receive, send)

    def _record(self, request: ApiRequest) -> None:
        """Count and log a request that has ended."""
        if request.epoch is not None:
            self._in_flight.leave(request.epoch, request.caller, request.held_bytes)
        seconds = self.services.clock() - request.arrival
        if request.spans is not None:
            request.spans.end(request)
        if not request.route.is_probe or request.status >= HTTPStatus.BAD_REQUEST:
            log_request(request, seconds)
        if not self._recorded:
            asyncio.get_running_loop().call_soon(self._observe)
        key = request.endpoint, request.status, request.model
        self._recorded.setdefault(key, []).append((seconds, request))

    def _observe(self) -> None:
        """Count the requests that ended in this turn of the event loop, those of one kind
        together.
        """
        recorded = self._recorded
        self._recorded = {}
        for (endpoint, status, _), ended in recorded.items():
            self.services.metrics.requests(endpoint, status, ended)
