"""The only module that knows httpx: sends requests, and turns its failures into ours."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from ign_client._errors import ConnectionFailed, TimedOut
from ign_client._settings import Settings
from ign_client._version import __version__
from ign_client._wire import MultipartBody, Request, Response

HttpClient = httpx.Client
AsyncHttpClient = httpx.AsyncClient
HttpTransport = httpx.BaseTransport
AsyncHttpTransport = httpx.AsyncBaseTransport

_DEADLINE_GRACE_S: Final = 1.0  # the service answers 504 at the deadline, and that answer has to travel too
_MIN_STREAM_READ_S: Final = 30.0  # a stream that lives says something every ten seconds


class _Wire:
    """What both transports have in common: how a request of ours becomes one of httpx's."""

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.base_url
        self._headers = {"User-Agent": f"ign-client/{__version__}"}
        if settings.api_key is not None:
            self._headers["Authorization"] = f"Bearer {settings.api_key}"

    def arguments(self, request: Request, *, stream: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "method": request.method,
            "url": self._base_url + request.path,
            "headers": {**self._headers, **request.headers},
            "timeout": _timeout(request.timeout, stream=stream),
        }
        if isinstance(request.body, MultipartBody):
            found["data"] = dict(request.body.fields)
            found["files"] = [(name, (name, data, "application/octet-stream")) for name, data in request.body.files]
        elif request.body is not None:
            found["content"] = request.body
        return found


class Transport:
    """Blocking.

    Args:
        settings: where to.
        transport: httpx's, instead of the network.
        http_client: a whole client of httpx's, which stays its owner's to close.
    """

    def __init__(self, settings: Settings, transport: HttpTransport | None, http_client: HttpClient | None) -> None:
        self._wire = _Wire(settings)
        self._owned = http_client is None
        self._client = http_client or httpx.Client(transport=transport)

    def send(self, request: Request) -> Response:
        """The whole answer.

        Raises:
            TransportError: there is none.
        """
        with _map_errors(request):
            return _response(self._client.send(self._build(request, stream=False), follow_redirects=False))

    def open(self, request: Request) -> Response:
        """An answer that goes on: its first piece, and in `rest` an iterator over the others."""
        with _map_errors(request):
            response = self._client.send(self._build(request, stream=True), stream=True, follow_redirects=False)
            try:
                if not _is_event_stream(response):
                    response.read()
                    return _response(response)
                pieces = response.iter_bytes()
                first = next(pieces, b"")
            except BaseException:
                response.close()
                raise
        return _response(response, first, Pieces(request, response, pieces))

    def close(self) -> None:
        if self._owned:
            self._client.close()

    def _build(self, request: Request, *, stream: bool) -> httpx.Request:
        return self._client.build_request(**self._wire.arguments(request, stream=stream))


class Pieces:
    """What follows the first piece of a stream."""

    def __init__(self, request: Request, response: httpx.Response, pieces: Iterator[bytes]) -> None:
        self._request, self._response, self._pieces = request, response, pieces

    def next(self) -> bytes | None:
        """The next piece, or None at the end."""
        with _map_errors(self._request):
            return next(self._pieces, None)

    def close(self) -> None:
        """Hang up, which cancels the work."""
        self._response.close()


class AsyncTransport:
    """The same for `async`."""

    def __init__(
        self, settings: Settings, transport: AsyncHttpTransport | None, http_client: AsyncHttpClient | None
    ) -> None:
        self._wire = _Wire(settings)
        self._owned = http_client is None
        self._client = http_client or httpx.AsyncClient(transport=transport)

    async def send(self, request: Request) -> Response:
        """The whole answer.

        Raises:
            TransportError: there is none.
        """
        with _map_errors(request):
            return _response(await self._client.send(self._build(request, stream=False), follow_redirects=False))

    async def open(self, request: Request) -> Response:
        """An answer that goes on: its first piece, and in `rest` an iterator over the others."""
        with _map_errors(request):
            response = await self._client.send(self._build(request, stream=True), stream=True, follow_redirects=False)
            try:
                if not _is_event_stream(response):
                    await response.aread()
                    return _response(response)
                pieces = response.aiter_bytes()
                first = await anext(pieces, b"")
            except BaseException:
                await response.aclose()
                raise
        return _response(response, first, AsyncPieces(request, response, pieces))

    async def close(self) -> None:
        if self._owned:
            await self._client.aclose()

    def _build(self, request: Request, *, stream: bool) -> httpx.Request:
        return self._client.build_request(**self._wire.arguments(request, stream=stream))


class AsyncPieces:
    """The same for `async`."""

    def __init__(self, request: Request, response: httpx.Response, pieces: AsyncIterator[bytes]) -> None:
        self._request, self._response, self._pieces = request, response, pieces

    async def next(self) -> bytes | None:
        """The next piece, or None at the end."""
        with _map_errors(self._request):
            return await anext(self._pieces, None)

    async def close(self) -> None:
        """Hang up, which cancels the work."""
        await self._response.aclose()


@contextmanager
def _map_errors(request: Request) -> Iterator[None]:
    """The one boundary at which httpx's failures become ours."""
    what = f"{request.method} {request.path}"
    try:
        yield
    except httpx.TimeoutException as exc:
        raise TimedOut(f"{what}: no answer in time ({type(exc).__name__})") from exc
    except httpx.RequestError as exc:
        raise ConnectionFailed(f"{what}: {str(exc) or type(exc).__name__}") from exc


def _is_event_stream(response: httpx.Response) -> bool:
    """Whether it is a stream of events; all else is read whole."""
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
