"""The outermost middleware: it sets the request id, arrival time and caller, and logs and counts the request.

`service.app` stacks the middleware in this order, from the outside in:

1. `AccessLogMiddleware`.
2. `CorsMiddleware`, if origins are configured; it is outside the others so that error responses have its headers.
3. `ErrorMiddleware`: turns an exception that nothing else handles into a problem document.
4. `ConcurrencyLimitMiddleware`: the limit on requests in flight, and 503 while draining.
5. `AuthMiddleware`, if keys are configured, and `RateLimitMiddleware`, if rates are limited.
6. `FastRouter`: calls the endpoints that run a model without the framework's routing.

`service.server` rejects some requests before all of them. Endpoints find in ``scope["state"]``: ``request_id`` (str),
``arrival`` (`time.monotonic()` seconds when the headers were complete) and ``caller`` (str, the fairness key).
"""

import time
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware.client_address import Network, address_key, peer_key
from service.observability.logs import Observe, choose_request_id, log_request

CLIENT_GONE: Final = 499
UNMATCHED: Final = "unmatched"


class AccessLogMiddleware:
    """Gives a request its id, arrival time and caller, and records how it ended.

    The log line and the metrics name the route's template, never the path, a key or a body. FastAPI sets the template
    of routes made with `app.get` or `APIRouter(prefix=…)`; not of mounts, nor a prefix given to `include_router`.

    Args:
        app: the application behind it.
        trusted_proxies: networks whose X-Forwarded-For is believed.
        observe: called once for every request.
    """

    def __init__(
        self, app: ASGIApp, *, trusted_proxies: Sequence[Network] = (), observe: Observe | None = None
    ) -> None:
        self._app = app
        self._trusted = trusted_proxies
        self._observe = observe

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
        state.update(request_id=request_id, arrival=arrival, response=response)
        state["caller"] = (
            peer_key(peer, headers.getlist("x-forwarded-for"), self._trusted) if self._trusted else address_key(peer)
        )
        try:
            await self._app(scope, receive, response.send)
        except ClientDisconnect:
            response.status = CLIENT_GONE
        else:
            if not response.complete:  # the server cuts the connection, so the status that was sent does not hold
                response.status = 500
        finally:
            del state["response"]  # the cycle request, state, response would wait for the garbage collector
            route = getattr(scope.get("route"), "path_format", None) or UNMATCHED
            seconds = time.monotonic() - arrival
            log_request(request_id, scope["method"], route, response.status, seconds)
            if self._observe is not None:
                self._observe(route, response.status, seconds, state)


class ResponseState:
    """How far the response of a request is; adds the request id to its headers.

    Args:
        send: the server's ASGI channel.
        request_id: for the header X-Request-ID.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self.status = 500
        self.started = False
        self.complete = False
        self._send = send
        self._request_id = request_id.encode("ascii")

    async def send(self, message: Message) -> None:
        """Pass a message on to the server."""
        self.started = True
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id)]
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)
