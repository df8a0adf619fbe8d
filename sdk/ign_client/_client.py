"""The two clients.

`ign_client._calls` builds a `Call` from the arguments of a method, and `ign_client._retry` decides about attempts. The
clients here do the I/O: `Client` blocks, `AsyncClient` awaits.
"""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import update_wrapper
from types import GenericAlias, TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, get_args, get_type_hints

from ign_client._calls import about as about_calls
from ign_client._calls import generate as generate_calls
from ign_client._calls import latents as latents_calls
from ign_client._calls import project as project_calls
from ign_client._errors import InputError, StatusError, TransportError
from ign_client._events import EventReader
from ign_client._results import Image, Limits
from ign_client._retry import Attempt, Retry, attempts
from ign_client._settings import DEFAULT_TIMEOUT_S, resolve
from ign_client._split import CONCURRENT, Part, Upload, join, moved_error
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


def _blocking_upload(build: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        upload = Upload(build, args, kwargs)
        try:
            return cast(T, self._run_upload(upload, **_connection(kwargs)))
        except StatusError as exc:
            raise upload.named(exc) from None

    return _with_signature(method, build, lambda answer: answer)


def _awaited_upload(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        # In threads, because they read and encode pictures.
        upload = await asyncio.to_thread(Upload, build, args, kwargs)
        try:
            return cast(T, await self._run_upload(upload, **_connection(kwargs)))
        except StatusError as exc:
            raise upload.named(exc) from None

    return _with_signature(method, build, lambda answer: answer)


def _connection(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options that a call shares with the request for the limits."""
    return {name: kwargs[name] for name in ("timeout", "request_id") if name in kwargs}


def _awaited(build: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        # In a thread, because it reads and encodes pictures.
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
    """Give a method the name, docstring and signature of the function that builds its call, with `self` before it."""
    update_wrapper(method, build)
    signature = inspect.signature(build)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    (answer,) = get_args(get_type_hints(build)["return"])
    parameters = [self_parameter, *signature.parameters.values()]
    vars(method)["__signature__"] = signature.replace(parameters=parameters, return_annotation=result(answer))
    return method


class _Common:
    """Arguments and properties that both clients share."""

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
        self._limits: Limits | None = None  # asked for when a call may exceed them

    @property
    def base_url(self) -> str:
        """URL of the service, without a slash at the end."""
        return self._settings.base_url

    def __repr__(self) -> str:
        name, settings = type(self).__name__, self._settings
        return f"{name}({settings.base_url!r}, timeout={settings.timeout!r}, max_retries={self._retry.max_retries})"

    def _attempts(self, call: Call[T]) -> Generator[Attempt, Response, T]:
        return attempts(call, self._settings.timeout, self._retry)


class Client(_Common):
    """Blocking client of ign-service. Threads may share it. Close it, or use it in a `with` statement.

    Args:
        base_url: URL of the service; default ``IGN_BASE_URL``, or else ``http://127.0.0.1:8000``.
        api_key: default ``IGN_API_KEY``, or else none.
        timeout: seconds for one attempt, which the service is told, too; None for the limit of the service.
        max_retries: attempts after the first one, for status 408, 429, 502, 503 and 504 and for transport errors.
        transport: an httpx transport instead of the network.
        http_client: an `httpx.Client` with its own settings (proxies, certificates); the caller closes it.
        sleep: waits for a number of seconds.
        clock: returns seconds since the epoch.
        jitter: returns uniform random numbers in [0, 1).

    Raises:
        InputError: an argument or an environment variable is invalid.
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
        retry = Retry(max_retries=max_retries, clock=clock, jitter=jitter)
        twice = transport is not None and http_client is not None
        super().__init__(base_url, api_key, timeout, retry, given_twice=twice)
        self._sleep = sleep
        self._transport = Transport(self._settings, transport, http_client)

    def _known_limits(self, **connection: Any) -> Limits:
        if self._limits is None:
            self._limits = self.models(**connection).limits
        return self._limits

    def _run_upload(self, upload: Upload, **connection: Any) -> Any:
        if upload.is_small:
            return self._run(upload.whole(), self._transport.send)
        parts = upload.parts(self._known_limits(**connection))
        with ThreadPoolExecutor(CONCURRENT) as pool:
            running = [pool.submit(self._run_part, part) for part in parts]
            try:
                return join([future.result() for future in running], parts)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _run_part(self, part: Part) -> Any:
        try:
            return self._run(part.build(), self._transport.send)
        except StatusError as exc:
            raise moved_error(exc, part.offset) from None

    generate = _blocking(generate_calls.generate)
    generate_as = _blocking(generate_calls.generate_as)
    stream_generate = _blocking_stream(generate_calls.stream_generate)
    project = _blocking_upload(project_calls.project)
    project_as = _blocking(project_calls.project_as)
    stream_project = _blocking_stream(project_calls.stream_project)
    latent_interpolate = _blocking(latents_calls.latent_interpolate)
    latent_interpolate_as = _blocking(latents_calls.latent_interpolate_as)
    latent_arithmetic = _blocking(latents_calls.latent_arithmetic)
    latent_arithmetic_as = _blocking(latents_calls.latent_arithmetic_as)
    score = _blocking_upload(project_calls.score)
    models = _blocking(about_calls.models)
    model = _blocking(about_calls.model)
    ready = _blocking(about_calls.ready)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
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
    """Asyncio client of ign-service. Close it with `aclose`, or use it in an `async with` statement.

    Args:
        base_url: URL of the service; default ``IGN_BASE_URL``, or else ``http://127.0.0.1:8000``.
        api_key: default ``IGN_API_KEY``, or else none.
        timeout: seconds for one attempt, which the service is told, too; None for the limit of the service.
        max_retries: attempts after the first one, for status 408, 429, 502, 503 and 504 and for transport errors.
        transport: an httpx transport instead of the network; `httpx.ASGITransport` calls an app in the same process.
        http_client: an `httpx.AsyncClient` with its own settings; the caller closes it.
        sleep: waits for a number of seconds.
        clock: returns seconds since the epoch.
        jitter: returns uniform random numbers in [0, 1).

    Raises:
        InputError: an argument or an environment variable is invalid.
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
        retry = Retry(max_retries=max_retries, clock=clock, jitter=jitter)
        twice = transport is not None and http_client is not None
        super().__init__(base_url, api_key, timeout, retry, given_twice=twice)
        self._sleep = sleep
        self._transport = AsyncTransport(self._settings, transport, http_client)

    async def _known_limits(self, **connection: Any) -> Limits:
        if self._limits is None:
            self._limits = (await self.models(**connection)).limits
        return self._limits

    async def _run_upload(self, upload: Upload, **connection: Any) -> Any:
        if upload.is_small:
            return await self._run(await asyncio.to_thread(upload.whole), self._transport.send)
        limits = await self._known_limits(**connection)
        parts = await asyncio.to_thread(upload.parts, limits)
        turn = asyncio.Semaphore(CONCURRENT)
        running = [asyncio.ensure_future(self._run_part(part, turn)) for part in parts]
        try:
            return join([await task for task in running], parts)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _run_part(self, part: Part, turn: asyncio.Semaphore) -> Any:
        async with turn:
            try:
                return await self._run(await asyncio.to_thread(part.build), self._transport.send)
            except StatusError as exc:
                raise moved_error(exc, part.offset) from None

    generate = _awaited(generate_calls.generate)
    generate_as = _awaited(generate_calls.generate_as)
    stream_generate = _awaited_stream(generate_calls.stream_generate)
    project = _awaited_upload(project_calls.project)
    project_as = _awaited(project_calls.project_as)
    stream_project = _awaited_stream(project_calls.stream_project)
    latent_interpolate = _awaited(latents_calls.latent_interpolate)
    latent_interpolate_as = _awaited(latents_calls.latent_interpolate_as)
    latent_arithmetic = _awaited(latents_calls.latent_arithmetic)
    latent_arithmetic_as = _awaited(latents_calls.latent_arithmetic_as)
    score = _awaited_upload(project_calls.score)
    models = _awaited(about_calls.models)
    model = _awaited(about_calls.model)
    ready = _awaited(about_calls.ready)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
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
