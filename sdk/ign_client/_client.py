"""The two clients.

What their methods are told stands in `ign_client._calls`, what happens then in `ign_client._retry`. Here both are
driven, once by blocking and once by awaiting.
"""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import update_wrapper
from types import GenericAlias, TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, get_args, get_type_hints

from ign_client._calls import about as about_calls
from ign_client._calls import generate as generate_calls
from ign_client._calls import latents as latents_calls
from ign_client._calls import project as project_calls
from ign_client._errors import InputError, TransportError
from ign_client._events import EventReader
from ign_client._results import Image
from ign_client._retry import Attempt, Retry, attempts
from ign_client._settings import DEFAULT_TIMEOUT_S, resolve
from ign_client._streams import AsyncStream, Stream
from ign_client._transport import (
    AsyncHttpClient,
    AsyncHttpTransport,
    AsyncTransport,
    HttpClient,
    HttpTransport,
    Transport,
)
from ign_client._wire import Call, Request, Response

P = ParamSpec("P")
T = TypeVar("T")
ImageT = TypeVar("ImageT", bound=Image)


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(build(*args, **kwargs), self._transport.send)

    return _with_signature(method, build, lambda answer: answer)


def _blocking_stream(
    build: Callable[P, Call[EventReader[ImageT]]],
) -> Callable[Concatenate["Client", P], Stream[ImageT]]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Stream[ImageT]:
        call = build(*args, **kwargs)
        return Stream(lambda: self._run(call, self._transport.open))

    return _with_signature(method, build, lambda reader: GenericAlias(Stream, get_args(reader)))


def _awaited(build: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        # In a thread: pictures are read from disk and encoded there.
        call = await asyncio.to_thread(build, *args, **kwargs)
        return await self._run(call, self._transport.send)

    return _with_signature(method, build, lambda answer: answer)


def _awaited_stream(
    build: Callable[P, Call[EventReader[ImageT]]],
) -> Callable[Concatenate["AsyncClient", P], AsyncStream[ImageT]]:
    def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[ImageT]:
        async def start() -> EventReader[ImageT]:
            call = await asyncio.to_thread(build, *args, **kwargs)
            return await self._run(call, self._transport.open)

        return AsyncStream(start)

    return _with_signature(method, build, lambda reader: GenericAlias(AsyncStream, get_args(reader)))


M = TypeVar("M", bound=Callable[..., Any])


def _with_signature(method: M, build: Callable[..., Any], result: Callable[[Any], Any]) -> M:
    """Give a method the signature that people and editors should see: that of its call, `self` before it."""
    update_wrapper(method, build)
    signature = inspect.signature(build)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    (answer,) = get_args(get_type_hints(build)["return"])
    parameters = [itself, *signature.parameters.values()]
    vars(method)["__signature__"] = signature.replace(parameters=parameters, return_annotation=result(answer))
    return method


class _Common:
    """What both clients are told and show."""

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        timeout: float | None,
        retry: Retry,
        *,
        given_twice: bool,
    ) -> None:
        if given_twice:
            raise InputError("transport: give transport or http_client, not both")
        self._settings = resolve(base_url, api_key, timeout)
        self._retry = retry

    @property
    def base_url(self) -> str:
        """Where the service is, without a slash at the end."""
        return self._settings.base_url

    def __repr__(self) -> str:
        name, settings = type(self).__name__, self._settings
        return f"{name}({settings.base_url!r}, timeout={settings.timeout!r}, max_retries={self._retry.most})"

    def _attempts(self, call: Call[T]) -> Generator[Attempt, Response, T]:
        return attempts(call, self._settings.timeout, self._retry)


class Client(_Common):
    """Calls ign-service, and blocks until it answers. May be shared by threads; close it, or use it in a `with`.

    Args:
        base_url: of the service; else ``IGN_BASE_URL``, else ``http://127.0.0.1:8000``.
        api_key: else ``IGN_API_KEY``, else none is sent.
        timeout: seconds for one attempt, told to the service as well; None for the service's own limit.
        max_retries: attempts beyond the first after 408, 429, 502, 503, 504 and where nobody answered.
        transport: of httpx, instead of the network.
        http_client: an `httpx.Client` with settings of its own (proxies, certificates); it stays yours to close.
        sleep: waits so many seconds.
        clock: seconds since the epoch.
        jitter: uniform numbers in [0, 1).

    Raises:
        InputError: an argument, or a variable of the environment, that cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        max_retries: int = 2,
        transport: HttpTransport | None = None,
        http_client: HttpClient | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        retry = Retry(most=max_retries, clock=clock, jitter=jitter)
        twice = transport is not None and http_client is not None
        super().__init__(base_url, api_key, timeout, retry, given_twice=twice)
        self._sleep = sleep
        self._transport = Transport(self._settings, transport, http_client)

    generate = _blocking(generate_calls.generate)
    generate_as = _blocking(generate_calls.generate_as)
    stream_generate = _blocking_stream(generate_calls.stream_generate)
    project = _blocking(project_calls.project)
    project_as = _blocking(project_calls.project_as)
    stream_project = _blocking_stream(project_calls.stream_project)
    latent_interpolate = _blocking(latents_calls.latent_interpolate)
    latent_interpolate_as = _blocking(latents_calls.latent_interpolate_as)
    latent_arithmetic = _blocking(latents_calls.latent_arithmetic)
    latent_arithmetic_as = _blocking(latents_calls.latent_arithmetic_as)
    score = _blocking(project_calls.score)
    models = _blocking(about_calls.models)
    model = _blocking(about_calls.model)
    ready = _blocking(about_calls.ready)

    def close(self) -> None:
        """Give the connections back."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[T], send: Callable[[Request], Response]) -> T:
        steps = self._attempts(call)
        try:
            attempt = next(steps)
            while True:
                if attempt.delay_s:
                    self._sleep(attempt.delay_s)
                try:
                    response = send(attempt.request)
                except TransportError as exc:
                    attempt = steps.throw(exc)
                else:
                    attempt = steps.send(response)
        except StopIteration as done:
            return cast(T, done.value)


class AsyncClient(_Common):
    """Calls ign-service from asyncio. Close it with `aclose`, or use it in an `async with`.

    Args:
        base_url: of the service; else ``IGN_BASE_URL``, else ``http://127.0.0.1:8000``.
        api_key: else ``IGN_API_KEY``, else none is sent.
        timeout: seconds for one attempt, told to the service as well; None for the service's own limit.
        max_retries: attempts beyond the first after 408, 429, 502, 503, 504 and where nobody answered.
        transport: of httpx, instead of the network; `httpx.ASGITransport` calls an app in the same process.
        http_client: an `httpx.AsyncClient` with settings of its own; it stays yours to close.
        sleep: waits so many seconds.
        clock: seconds since the epoch.
        jitter: uniform numbers in [0, 1).

    Raises:
        InputError: an argument, or a variable of the environment, that cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        max_retries: int = 2,
        transport: AsyncHttpTransport | None = None,
        http_client: AsyncHttpClient | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        retry = Retry(most=max_retries, clock=clock, jitter=jitter)
        twice = transport is not None and http_client is not None
        super().__init__(base_url, api_key, timeout, retry, given_twice=twice)
        self._sleep = sleep
        self._transport = AsyncTransport(self._settings, transport, http_client)

    generate = _awaited(generate_calls.generate)
    generate_as = _awaited(generate_calls.generate_as)
    stream_generate = _awaited_stream(generate_calls.stream_generate)
    project = _awaited(project_calls.project)
    project_as = _awaited(project_calls.project_as)
    stream_project = _awaited_stream(project_calls.stream_project)
    latent_interpolate = _awaited(latents_calls.latent_interpolate)
    latent_interpolate_as = _awaited(latents_calls.latent_interpolate_as)
    latent_arithmetic = _awaited(latents_calls.latent_arithmetic)
    latent_arithmetic_as = _awaited(latents_calls.latent_arithmetic_as)
    score = _awaited(project_calls.score)
    models = _awaited(about_calls.models)
    model = _awaited(about_calls.model)
    ready = _awaited(about_calls.ready)

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, call: Call[T], send: Callable[[Request], Awaitable[Response]]) -> T:
        steps = self._attempts(call)
        try:
            attempt = next(steps)
            while True:
                if attempt.delay_s:
                    await self._sleep(attempt.delay_s)
                try:
                    response = await send(attempt.request)
                except TransportError as exc:
                    attempt = steps.throw(exc)
                else:
                    attempt = steps.send(response)
        except StopIteration as done:
            return cast(T, done.value)
