"""An exception that nothing else handles becomes a problem document."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http.problems import log_failure, request_id_of, send_problem


class ErrorMiddleware:
    """Turns an exception into a problem. Once the response has started, it only logs it, and the server cuts the response.

    It needs `AccessLogMiddleware` outside, which keeps the state of the response.

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
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as exc:
            if scope["state"]["response"].started:
                log_failure(exc, request_id_of(scope))
            else:
                await send_problem(scope, send, exc)
