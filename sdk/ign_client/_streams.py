"""Event streams as iterators, for a `with` statement or a loop to the end.

This module does the I/O: it reads chunks and passes them to the reader of `_events`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from ign_client._events import Event, EventReader
from ign_client._results import Image

ImageT = TypeVar("ImageT", bound=Image)


class Stream(Iterator[Event[ImageT]], Generic[ImageT]):
    """Iterator over `Step`, `Progress` and at the end `Done`. The request is sent when the first event is read.

    Closing the stream, or leaving the `with` block, stops the computation. A stream cannot be resumed.

    Raises:
        IgnError: until the first event, as any method. Later `StatusError` if the service failed, `TransportError` if
            the connection broke, `UnexpectedAnswer` if the stream ended early.
    """

    def __init__(self, start: Callable[[], EventReader[ImageT]]) -> None:
        self._start = start
        self._reader: EventReader[ImageT] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event[ImageT]:
        try:
            return self._next()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; a second call has no effect."""
        self._closed = True
        if self._reader is not None:
            self._reader.rest.close()

    def _next(self) -> Event[ImageT]:
        if self._closed:
            raise StopIteration
        if self._reader is None:
            self._reader = self._start()
        while (event := self._reader.next()) is None:
            if self._reader.finished:
                raise StopIteration
            self._reader.feed(self._reader.rest.next())
        return event


class AsyncStream(AsyncIterator[Event[ImageT]], Generic[ImageT]):
    """Like `Stream`, for `async with` and `async for`; close it with `aclose`."""

    def __init__(self, start: Callable[[], Awaitable[EventReader[ImageT]]]) -> None:
        self._start = start
        self._reader: EventReader[ImageT] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[ImageT]:
        try:
            return await self._next()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connection; a second call has no effect."""
        self._closed = True
        if self._reader is not None:
            await self._reader.rest.close()

    async def _next(self) -> Event[ImageT]:
        if self._closed:
            raise StopAsyncIteration
        if self._reader is None:
            self._reader = await self._start()
        while (event := self._reader.next()) is None:
            if self._reader.finished:
                raise StopAsyncIteration
            self._reader.feed(await self._reader.rest.next())
        return event
