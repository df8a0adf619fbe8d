"""What happens around every request, as pure ASGI middleware.

From the outside in:

- `AccessLogMiddleware`: request id, arrival time, caller; the access log line and the metrics, whatever happens inside.
- `CorsMiddleware`, where origins are configured: outside of all that answers, so that errors carry its headers too.
- `ErrorMiddleware`: an exception nobody foresaw becomes a problem.
- `ConcurrencyLimitMiddleware`: the limit on requests in flight, and refusal while draining.
- `service.api.middleware.auth.AuthMiddleware`, and `service.api.middleware.rate_limit.RateLimitMiddleware` where there are quotas.

In front of them all, where uvicorn is the server, stands `service.server.early_rejection`.

Endpoints find in ``request.state``: ``request_id`` (str), ``arrival`` (`time.monotonic()` seconds when the headers
were there) and ``caller`` (str, the key under which fairness counts).
- `service.api.middleware.fast_routes.FastRouter`: the endpoints that are called all day, without the framework's routing.
"""

import time
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware.auth import Network, peer_key
from service.observability.logs import Observe, identify, record

CLIENT_GONE: Final = 499
UNMATCHED: Final = "unmatched"


class AccessLogMiddleware:
    """Gives a request its id, arrival time and caller, and records how it ended. Outermost.

    The log line and the metrics name the route's template, never the path, a key or a body. FastAPI tells the template
    of its own routes only (`app.get`, `APIRouter(prefix=…)`), not of mounts, nor a prefix given to `include_router`.

    Args:
        app: the application behind it.
        trusted_proxies: networks whose X-Forwarded-For is believed.
        observe: called once per request.
    """

    def __init__(
        self, app: ASGIApp, *, trusted_proxies: Sequence[Network] = (), observe: Observe | None = None
    ) -> None:
        self._app = app
        self._trusted = trusted_proxies
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
