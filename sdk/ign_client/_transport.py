"""Send requests with httpx, and map its exceptions. No other module imports httpx."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from ign_client._errors import ConnectionFailed, TimedOut
from ign_client._extras import trace_headers
from ign_client._settings import Settings
from ign_client._version import __version__
from ign_client._wire import MultipartBody, Request, Response

HttpClient = httpx.Client
AsyncHttpClient = httpx.AsyncClient
HttpTransport = httpx.BaseTransport
AsyncHttpTransport = httpx.AsyncBaseTransport

_DEADLINE_GRACE_S: Final = 1.0  # added to the timeout, so that the service's 504 at the deadline still arrives
_MIN_STREAM_READ_S: Final = (
    30.0  # the service sends a comment every 10 s, so a longer silence means a broken connection
)


class _Wire:
    """Converts a `Request` to the arguments of httpx, for both transports."""

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.base_url
        self._headers = {"User-Agent": f"ign-client/{__version__}"}
        if settings.api_key is not None:
            self._headers["Authorization"] = f"Bearer {settings.api_key}"

    def arguments(self, request: Request, *, stream: bool) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "method": request.method,
            "url": self._base_url + request.path,
            "headers": {**self._headers, **trace_headers(), **request.headers},
            "timeout": _timeout(request.timeout, stream=stream),
        }
        if isinstance(request.body, MultipartBody):
            arguments["data"] = dict(request.body.fields)
            arguments["files"] = [(name, (name, data, "application/octet-stream")) for name, data in request.body.files]
        elif request.body is not None:
            arguments["content"] = request.body
        return arguments


class Transport:
    """Blocking transport.

    Args:
        settings: URL and API key.
        transport: an httpx transport instead of the network.
        http_client: a complete httpx client, which the caller closes.
    """

    def __init__(self, settings: Settings, transport: HttpTransport | None, http_client: HttpClient | None) -> None:
        self._wire = _Wire(settings)
        self._owned = http_client is None
        self._client = http_client or httpx.Client(transport=transport)

    def send(self, request: Request) -> Response:
        """Send a request and read the whole response.

        Raises:
            TransportError: there is no response.
        """
        with _map_errors(request):
            return _response(self._client.send(self._build(request, stream=False), follow_redirects=False))

    def open(self, request: Request) -> Response:
        """Send a request and read the first chunk of an event stream; `rest` gives the other chunks."""
        with _map_errors(request):
            response = self._client.send(self._build(request, stream=True), stream=True, follow_redirects=False)
            try:
                if not _is_event_stream(response):
                    response.read()
                    return _response(response)
                chunks = response.iter_bytes()
                first = next(chunks, b"")
            except BaseException:
                response.close()
                raise
        return _response(response, first, Chunks(request, response, chunks))

    def close(self) -> None:
        if self._owned:
            self._client.close()

    def _build(self, request: Request, *, stream: bool) -> httpx.Request:
        return self._client.build_request(**self._wire.arguments(request, stream=stream))


class Chunks:
    """The chunks of a stream after the first one."""

    def __init__(self, request: Request, response: httpx.Response, chunks: Iterator[bytes]) -> None:
        self._request, self._response, self._chunks = request, response, chunks

    def next(self) -> bytes | None:
        """The next chunk, or None at the end."""
        with _map_errors(self._request):
            return next(self._chunks, None)

    def close(self) -> None:
        """Close the connection, which stops the computation."""
        self._response.close()


class AsyncTransport:
    """Asynchronous transport; arguments as for `Transport`."""

    def __init__(
        self, settings: Settings, transport: AsyncHttpTransport | None, http_client: AsyncHttpClient | None
    ) -> None:
        self._wire = _Wire(settings)
        self._owned = http_client is None
        self._client = http_client or httpx.AsyncClient(transport=transport)

    async def send(self, request: Request) -> Response:
        """Send a request and read the whole response.

        Raises:
            TransportError: there is no response.
        """
        with _map_errors(request):
            return _response(await self._client.send(self._build(request, stream=False), follow_redirects=False))

    async def open(self, request: Request) -> Response:
        """Send a request and read the first chunk of an event stream; `rest` gives the other chunks."""
        with _map_errors(request):
            response = await self._client.send(self._build(request, stream=True), stream=True, follow_redirects=False)
            try:
                if not _is_event_stream(response):
                    await response.aread()
                    return _response(response)
                chunks = response.aiter_bytes()
                first = await anext(chunks, b"")
            except BaseException:
                await response.aclose()
                raise
        return _response(response, first, AsyncChunks(request, response, chunks))

    async def close(self) -> None:
        if self._owned:
            await self._client.aclose()

    def _build(self, request: Request, *, stream: bool) -> httpx.Request:
        return self._client.build_request(**self._wire.arguments(request, stream=stream))


class AsyncChunks:
    """Asynchronous version of `Chunks`."""

    def __init__(self, request: Request, response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
        self._request, self._response, self._chunks = request, response, chunks

    async def next(self) -> bytes | None:
        """The next chunk, or None at the end."""
        with _map_errors(self._request):
            return await anext(self._chunks, None)

    async def close(self) -> None:
        """Close the connection, which stops the computation."""
        await self._response.aclose()


@contextmanager
def _map_errors(request: Request) -> Iterator[None]:
    """Turn the exceptions of httpx into those of this package."""
    request_line = f"{request.method} {request.path}"
    try:
        yield
    except httpx.TimeoutException as exc:
        raise TimedOut(f"{request_line}: no answer in time ({type(exc).__name__})") from exc
    except httpx.RequestError as exc:
        raise ConnectionFailed(f"{request_line}: {str(exc) or type(exc).__name__}") from exc


def _is_event_stream(response: httpx.Response) -> bool:
    """Whether the response is an event stream; any other response is read completely."""
    return response.status_code == 200 and response.headers.get("content-type", "").startswith("text/event-stream")


def _response(response: httpx.Response, first: bytes | None = None, rest: object = None) -> Response:
    content = response.content if first is None else first
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Response(status=response.status_code, headers=headers, content=content, rest=rest)


def _timeout(seconds: float | None, *, stream: bool) -> httpx.Timeout:
    if seconds is None:
        return httpx.Timeout(None)
    waits = seconds + _DEADLINE_GRACE_S
    return httpx.Timeout(waits, connect=seconds, read=max(waits, _MIN_STREAM_READ_S) if stream else waits)
