"""Turn exceptions that nothing else handles into problem documents."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.heads import check_head
from service.api.http.problems import log_failure, request_id_of, send_problem


class ErrorMiddleware:
    """Answers an exception with a problem document.

    After the start of the response it only logs the exception, and the server closes the connection before the end of
    the response. It reads the state of the response, which `AccessLogMiddleware` sets, so that must be outside.

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
            error = scope["state"].get("rejected") or check_head(scope["http_version"], scope["headers"])
            if error is not None:
                await send_problem(scope, _closing(send), error)
                return
            await self._app(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as exc:
            if scope["state"]["response"].started:
                log_failure(exc, request_id_of(scope))
            else:
                await send_problem(scope, send, exc)


def _closing(send: Send) -> Send:
    async def closing(message):  # type: ignore
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)
    return closing
