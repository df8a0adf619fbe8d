"""The two clients.

`_calls` turns the arguments of a method into calls. What sends them is written once, as coroutines:
`AsyncClient` awaits them, `Client` completes them without an event loop, because all that its
coroutines await blocks.
"""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from ign_client import _calls
from ign_client import _transport as network
from ign_client._calls import CONCURRENT, Calls, join
from ign_client._errors import IgnError, InputError, TransportError, unexpected
from ign_client._results import Image
from ign_client._settings import DEFAULT_TIMEOUT_S, Settings, resolve
from ign_client._stream import AsyncStream, Events, Stream
from ign_client._wire import Call, Response, complete, delay

P = ParamSpec("P")
T = TypeVar("T")
ImageT = TypeVar("ImageT", bound=Image)
TransportT = TypeVar("TransportT")
HttpClientT = TypeVar("HttpClientT")


def _blocking(build: Callable[P, Calls[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(build)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._result(build(*args, **kwargs))

    return method


def _blocking_stream(
    build: Callable[P, Call[Events[ImageT]]],
) -> Callable[Concatenate["Client", P], Stream[ImageT]]:
    @wraps(build)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Stream[ImageT]:
        return Stream(partial(self._run, build(*args, **kwargs)))

    return method


def _awaited(
    build: Callable[P, Calls[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    @wraps(build)
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        # In a thread, because it reads and encodes images.
        return await self._result(await asyncio.to_thread(build, *args, **kwargs))

    return method


def _awaited_stream(
    build: Callable[P, Call[Events[ImageT]]],
) -> Callable[Concatenate["AsyncClient", P], AsyncStream[ImageT]]:
    @wraps(build)
    def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[ImageT]:
        async def start() -> Events[ImageT]:
            return await self._run(await asyncio.to_thread(build, *args, **kwargs))

        return AsyncStream(start)

    return method


class _Common(Generic[TransportT, HttpClientT]):
    _default_http_client: ClassVar[Callable[..., Any]]
    _default_sleep: ClassVar[Callable[[float], Any]]
    _send: ClassVar[Callable[..., Awaitable[Response]]]

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        deadline: float | None = None,
        max_retries: int | None = None,
        transport: TransportT | None = None,
        http_client: HttpClientT | None = None,
        sleep: Callable[[float], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if transport is not None and http_client is not None:
            raise InputError("transport: give transport or http_client, not both")
        self._settings = Settings(
            *resolve(base_url, api_key), timeout, deadline, max_retries, clock, jitter
        )
        self._sleep = sleep or type(self)._default_sleep
        self._is_owner = http_client is None
        self._http_client: HttpClientT = http_client or type(self)._default_http_client(
            transport=transport
        )

    @property
    def base_url(self) -> str:
        """URL of the service, without a slash at the end."""
        return self._settings.base_url

    async def _run(self, call: Call[T], ends: float | None = None) -> T:
        """Send a call until one attempt succeeds, and return its parsed response.

        Every call may be repeated, because the service keeps no state for callers. The last
        repetition begins before ``ends``; without such an end, before the timeout has passed since
        the first attempt.

        Raises:
            TransportError, StatusError: the error of the last attempt.
            UnexpectedAnswer: the response cannot be parsed.
        """
        settings = self._settings
        ends = call.ends(settings) if ends is None else ends
        gives_up = call.gives_up(settings, ends)
        retries = 0
        while True:
            error: IgnError
            try:
                request = call.request(settings, ends)
                response = await self._send(self._http_client, settings, request)
            except TransportError as exc:
                error = exc
            else:
                if response.status in call.statuses:
                    with unexpected(
                        f"{call.path} answered with something that is not its answer",
                        response.request_id,
                    ):
                        return call.parse(response)
                error = call.placed(response.error())
                if "deadline" in error.code:
                    error.detail += f": {request.limit.names}"
            seconds = delay(settings, error, retries)
            if seconds is None or settings.clock() + seconds > gives_up:
                raise error
            waiting = self._sleep(seconds)
            if inspect.isawaitable(waiting):
                await waiting
            retries += 1


class Client(_Common[network.HttpTransport, network.HttpClient]):
    """Blocking client of ign-service. Threads may share it. Close it, or use it in a `with`
    statement.

    Args:
        base_url: URL of the service; default ``IGN_BASE_URL``, or else ``http://127.0.0.1:8000``.
        api_key: default ``IGN_API_KEY``, or else none.
        timeout: seconds for one attempt, not for the call, which ``deadline`` limits: until its
            response is complete. The service is told, too. None for the limit of the service.
        deadline: seconds for a whole call with its retries, also if it sends several requests; None
            for no limit.
        max_retries: attempts after the first one, for status 408, 429, 502, 503 and 504 and for
            transport errors. None: as many as begin before the deadline, or without one within the
            timeout.
        transport: an httpx transport instead of the network.
        http_client: an `httpx.Client` with its own settings (proxies, certificates); the caller
            closes it.
        sleep: waits for a number of seconds; `time.sleep` by default.
        clock: returns seconds, by which timeouts and deadlines are measured.
        jitter: returns uniform random numbers in [0, 1), so that clients that failed together do
            not retry together.

    Raises:
        InputError: an argument or an environment variable is invalid.
    """

    _default_http_client = network.HttpClient
    _default_sleep = time.sleep
    _send = staticmethod(network.send)

    generate = _blocking(_calls.generate)
    generate_as = _blocking(_calls.generate_as)
    stream_generate = _blocking_stream(_calls.stream_generate)
    project = _blocking(_calls.project)
    project_as = _blocking(_calls.project_as)
    stream_project = _blocking_stream(_calls.stream_project)
    latent_interpolate = _blocking(_calls.latent_interpolate)
    latent_interpolate_as = _blocking(_calls.latent_interpolate_as)
    latent_arithmetic = _blocking(_calls.latent_arithmetic)
    latent_arithmetic_as = _blocking(_calls.latent_arithmetic_as)
    score = _blocking(_calls.score)
    models = _blocking(_calls.models)
    model = _blocking(_calls.model)
    ready = _blocking(_calls.ready)

    def close(self) -> None:
        """Close the connections."""
        if self._is_owner:
            self._http_client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _result(self, calls: Calls[T]) -> T:
        if isinstance(calls, Call):
            return complete(self._run(calls))
        ends = calls[0].ends(self._settings)
        with ThreadPoolExecutor(CONCURRENT) as pool:
            parts = pool.map(lambda call: complete(self._run(call, ends)), calls)
            return cast(T, join(list(parts)))


class AsyncClient(_Common[network.AsyncHttpTransport, network.AsyncHttpClient]):
    """Asyncio client of ign-service. Close it with `aclose`, or use it in an `async with`
    statement.

    The arguments are those of `Client`, with an `httpx.AsyncClient`, an asynchronous transport
    (`httpx.ASGITransport` calls an app in the same process) and an asynchronous ``sleep``.
    """

    _default_http_client = network.AsyncHttpClient
    _default_sleep = asyncio.sleep
    _send = staticmethod(network.send_async)

    generate = _awaited(_calls.generate)
    generate_as = _awaited(_calls.generate_as)
    stream_generate = _awaited_stream(_calls.stream_generate)
    project = _awaited(_calls.project)
    project_as = _awaited(_calls.project_as)
    stream_project = _awaited_stream(_calls.stream_project)
    latent_interpolate = _awaited(_calls.latent_interpolate)
    latent_interpolate_as = _awaited(_calls.latent_interpolate_as)
    latent_arithmetic = _awaited(_calls.latent_arithmetic)
    latent_arithmetic_as = _awaited(_calls.latent_arithmetic_as)
    score = _awaited(_calls.score)
    models = _awaited(_calls.models)
    model = _awaited(_calls.model)
    ready = _awaited(_calls.ready)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._is_owner:
            await self._http_client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _result(self, calls: Calls[T]) -> T:
        if isinstance(calls, Call):
            return await self._run(calls)
        ends = calls[0].ends(self._settings)
        turn = asyncio.Semaphore(CONCURRENT)

        async def run(call: Call[T]) -> T:
            async with turn:
                return await self._run(call, ends)

        try:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(run(call)) for call in calls]
        except ExceptionGroup as failures:
            error = failures.exceptions[0]
            raise error from error.__cause__
        return cast(T, join([part.result() for part in parts]))
