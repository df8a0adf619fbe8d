"""Send requests with httpx, and map its exceptions. No other module imports httpx."""

import socket
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from functools import partial
from typing import Any, Final

import httpx

from ign_client._errors import ConnectionFailed, TimedOut
from ign_client._extras import trace_headers
from ign_client._settings import Settings
from ign_client._version import __version__
from ign_client._wire import EVENTS, MultipartBody, Request, Response

HttpClient = httpx.Client
AsyncHttpClient = httpx.AsyncClient
HttpTransport = httpx.BaseTransport
AsyncHttpTransport = httpx.AsyncBaseTransport

_DEADLINE_GRACE_S: Final = 1.0  # added to the timeout, so that the service's 504 at the deadline still arrives
_MIN_STREAM_READ_S: Final = 30.0  # the service sends a comment every 10 s: a longer silence is a broken connection


class Transport:
    """Blocking transport; ``transport`` and ``http_client`` are those of `Client`."""

    def __init__(self, settings: Settings, transport: HttpTransport | None, http_client: HttpClient | None) -> None:
        self._settings = settings
        self._owned = http_client is None
        self._client = http_client or httpx.Client(transport=transport)

    def send(self, request: Request, *, stream: bool = False) -> Response:
        """Send a request and read the whole response, or of a stream the first chunk; raises `TransportError`."""
        built = self._client.build_request(**_arguments(self._settings, request, stream=stream))
        with _map_errors(request):
            response = self._client.send(built, stream=True, follow_redirects=False)
            if not stream or not _is_event_stream(response):
                with closing(response):
                    return _response(response, response.read())
        chunks = _chunks(request, response)
        return _response(response, next(chunks, b""), chunks)

    def close(self) -> None:
        if self._owned:
            self._client.close()


def _chunks(request: Request, response: httpx.Response) -> Generator[bytes, None, None]:
    """The chunks of a stream. Closing the generator closes the connection, which stops the computation."""
    with _map_errors(request), closing(response):
        yield from response.iter_bytes()


class AsyncTransport:
    """Like `Transport`, for `AsyncClient`."""

    def __init__(
        self, settings: Settings, transport: AsyncHttpTransport | None, http_client: AsyncHttpClient | None
    ) -> None:
        self._settings = settings
        self._owned = http_client is None
        self._client = http_client or httpx.AsyncClient(transport=transport)

    async def send(self, request: Request, *, stream: bool = False) -> Response:
        """Send a request and read the whole response, or of a stream the first chunk; raises `TransportError`."""
        built = self._client.build_request(**_arguments(self._settings, request, stream=stream))
        with _map_errors(request):
            response = await self._client.send(built, stream=True, follow_redirects=False)
            if not stream or not _is_event_stream(response):
                async with aclosing(response):
                    return _response(response, await response.aread())
        chunks = _async_chunks(request, response)
        return _response(response, await anext(chunks, b""), chunks)

    async def close(self) -> None:
        if self._owned:
            await self._client.aclose()


async def _async_chunks(request: Request, response: httpx.Response) -> AsyncGenerator[bytes, None]:
    with _map_errors(request):
        async with aclosing(response):
            async for chunk in response.aiter_bytes():
                yield chunk


def _arguments(settings: Settings, request: Request, *, stream: bool) -> dict[str, Any]:
    headers = {"User-Agent": f"ign-client/{__version__}", **trace_headers(), **request.headers}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    arguments: dict[str, Any] = {"method": request.method, "url": settings.base_url + request.path, "headers": headers}
    arguments["timeout"] = _timeout(request.timeout, stream=stream)
    if isinstance(request.body, MultipartBody):
        arguments["data"] = dict(request.body.fields)
        arguments["files"] = [(name, (name, data, "application/octet-stream")) for name, data in request.body.files]
    elif request.body is not None:
        arguments["content"] = request.body
    return arguments


@contextmanager
def _map_errors(request: Request) -> Iterator[None]:
    request_line = f"{request.method} {request.path}"
    try:
        yield
    except httpx.TimeoutException as exc:
        raise TimedOut(f"{request_line}: no answer in time ({type(exc).__name__})") from exc
    except httpx.RequestError as exc:
        raise ConnectionFailed(f"{request_line}: {str(exc) or type(exc).__name__}") from exc


def _is_event_stream(response: httpx.Response) -> bool:
    return response.status_code == 200 and response.headers.get("content-type", "").startswith(EVENTS)


def _response(response: httpx.Response, content: bytes, rest: object = None) -> Response:
    headers = {name.lower(): value for name, value in response.headers.items()}
    cut = partial(_cut, response)
    return Response(status=response.status_code, headers=headers, content=content, rest=rest, cut=cut)


def _cut(response: httpx.Response) -> None:
    """Shut the socket down: a thread that waits for bytes then finds their end, which `close` would not bring about."""
    stream = response.extensions.get("network_stream")  # a transport without a network has none
    open_socket = None if stream is None else stream.get_extra_info("socket")
    if open_socket is not None:
        with suppress(OSError):  # the service has closed it
            open_socket.shutdown(socket.SHUT_RDWR)


def _timeout(seconds: float | None, *, stream: bool) -> httpx.Timeout:
    if seconds is None:
        return httpx.Timeout(None)
    waits = seconds + _DEADLINE_GRACE_S
    return httpx.Timeout(waits, connect=seconds, read=max(waits, _MIN_STREAM_READ_S) if stream else waits)
