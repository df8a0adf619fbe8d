"""An exception that nothing else handles becomes a problem document."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.http.problems import log_failure, request_id_of, send_problem


class ErrorMiddleware:
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
