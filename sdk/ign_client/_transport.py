"""Send requests with httpx, and map its exceptions. No other module imports httpx."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar

import httpx

from ign_client._errors import ConnectionFailed, TimedOut, UnexpectedAnswer
from ign_client._extras import trace_headers
from ign_client._settings import Settings
from ign_client._version import __version__
from ign_client._wire import EVENTS, Limit, Request, Response

T = TypeVar("T")
HttpClient = httpx.Client
AsyncHttpClient = httpx.AsyncClient
HttpTransport = httpx.BaseTransport
AsyncHttpTransport = httpx.AsyncBaseTransport
Chunks = AsyncGenerator[bytes, None]

_LIMIT: Final[ContextVar[Limit | None]] = ContextVar("_LIMIT", default=None)
"""The limit of the request that this thread sends or receives."""
_OPENED: Final = (".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")
# at a time, so that a server that reads slowly does not prolong a write
_WRITE_BYTES: Final = 1 << 14


async def send(client: HttpClient, settings: Settings, request: Request) -> Response:
    """Send a request and read the whole response, or of a stream the first chunk; raises
    `TransportError`. It blocks, and never waits for an event loop.
    """
    with _map_errors(request), _limited(request.limit):
        built = client.build_request(
            **_arguments(settings, request),
            timeout=request.limit.left(),
            extensions={"trace": _limit_connection},
        )
        response = client.send(built, stream=True, follow_redirects=False)
    return await _received(request, response, _chunks(request, response))


async def _chunks(request: Request, response: httpx.Response) -> Chunks:
    """The content in pieces. Closing the generator closes the connection, which stops the
    computation.
    """
    with _map_errors(request), closing(response):
        pieces = _pieces(response, response.iter_bytes)
        while True:
            with _limited(request.limit):
                piece = next(pieces, None)
            if piece is None:
                return
            yield request.limit.count(piece)


@contextmanager
def _limited(limit: Limit) -> Iterator[None]:
    """Let each read and write of this thread end when the limit does."""
    limit.left()
    token = _LIMIT.set(limit)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def _limit_connection(event: str, info: Mapping[str, Any]) -> None:
    """Called by httpcore: let the reads and writes of a new connection observe the limit of their
    thread.

    The timeouts of httpx start again with each byte that arrives. Those of a read cannot change
    while a response is received, so the methods of the connection are replaced.
    """
    if not event.endswith(_OPENED):
        return
    stream = info["return_value"]
    read = stream.read
    write = stream.write

    def limited_read(max_bytes: int, timeout: float | None = None) -> Any:
        return read(max_bytes, _seconds(timeout))

    def limited_write(data: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            write(data[start : start + _WRITE_BYTES], _seconds(timeout))

    stream.read = limited_read
    stream.write = limited_write


def _seconds(timeout: float | None) -> float | None:
    limit = _LIMIT.get()
    return timeout if limit is None else limit.left()


async def send_async(client: AsyncHttpClient, settings: Settings, request: Request) -> Response:
    """Like `send`."""
    with _map_errors(request):
        async with asyncio.timeout(request.limit.left()):
            built = client.build_request(**_arguments(settings, request), timeout=None)
            response = await client.send(built, stream=True, follow_redirects=False)
    return await _received(request, response, _async_chunks(request, response))


async def _async_chunks(request: Request, response: httpx.Response) -> Chunks:
    with _map_errors(request):
        async with aclosing(response):
            pieces = _pieces(response, response.aiter_bytes)
            while True:
                async with asyncio.timeout(request.limit.left()):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield request.limit.count(piece)


def _pieces(response: httpx.Response, pieces: Callable[[], T]) -> T:
    """Begin to read the content, unless it is compressed: a small response could become a large
    one.
    """
    if (coding := response.headers.get("content-encoding", "identity")) != "identity":
        raise UnexpectedAnswer(
            f"the response is compressed ({coding}), which the client did not ask for"
        )
    return pieces()


def _arguments(settings: Settings, request: Request) -> dict[str, Any]:
    headers = {"User-Agent": f"ign-client/{__version__}", **trace_headers(), **request.headers}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    url = settings.base_url + request.path
    return {"method": request.method, "url": url, "headers": headers, **request.body}


@contextmanager
def _map_errors(request: Request) -> Iterator[None]:
    request_line = f"{request.method} {request.path}"
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as exc:
        raise TimedOut(f"{request_line}: no answer in time: {request.limit.names}") from exc
    except httpx.RequestError as exc:
        raise ConnectionFailed(f"{request_line}: {str(exc) or type(exc).__name__}") from exc
    except (httpx.InvalidURL, ValueError) as exc:  # httpx also parses the address of a redirect
        raise UnexpectedAnswer(f"{request_line}: {exc}") from exc


async def _received(request: Request, response: httpx.Response, chunks: Chunks) -> Response:
    received = partial(Response, response.status_code, response.headers, limit=request.limit)
    is_stream = response.headers.get("content-type", "").startswith(EVENTS)
    if is_stream and request.headers["Accept"] == EVENTS and response.status_code == 200:
        return received(await anext(chunks, b""), rest=chunks)
    return received(b"".join([chunk async for chunk in chunks]))
