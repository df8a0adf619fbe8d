"""Event streams, in three layers: bytes become server-sent events, those become `Event`s, and iterators do the I/O.

```text
chunks ──Decoder──▶ ServerSentEvent ──EventReader──▶ Step | Progress | Done ──Stream, AsyncStream──▶ caller
```
"""

import codecs
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, Self, TypeAlias, TypeVar

from ign_client import _answers
from ign_client._errors import IgnError, UnexpectedAnswer, problem_from, status_error
from ign_client._results import Done, Image, Progress, Step
from ign_client._wire import Response

EVENTS: Final = "text/event-stream"
ImageT = TypeVar("ImageT", bound=Image)
Event: TypeAlias = Step | Progress | Done[ImageT]


class ServerSentEvent(NamedTuple):
    """An event: its type, ``message`` by default, and its data lines, joined by line feeds."""

    event: str
    data: str


class Decoder:
    """Incremental decoder of server-sent events (HTML standard, section 9.2), for chunks that may end anywhere.

    An incomplete event at the end of the stream is dropped. The fields `id` and `retry` concern reconnecting only, so
    they are ignored like comments and unknown fields.
    """

    def __init__(self) -> None:
        # A byte order mark at the start is dropped, and invalid UTF-8 is replaced, as the standard says.
        self._text = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line = ""
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that end in this chunk."""
        text = self._text.decode(chunk)
        if not text:
            return []
        # A line ends with CR, LF or CRLF. If a chunk ended between CR and LF, the LF belongs to the same line end.
        rest = text[1:] if self._after_cr and text.startswith("\n") else text
        self._after_cr = text.endswith("\r")
        *lines, self._line = (self._line + rest).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> ServerSentEvent | None:
        if not line:
            event, data = self._event, self._data
            self._event, self._data = "", []
            return ServerSentEvent(event or "message", "\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None


def events(build: _answers.Build[ImageT], record: Sequence[int] | None) -> Callable[[Response], "EventReader[ImageT]"]:
    """A parser of event streams whose images ``build`` creates; ``record``: the steps that were requested."""

    def parse(response: Response) -> EventReader[ImageT]:
        if response.rest is None:
            raise ValueError(f"expected {EVENTS}, not {response.media_type!r}")
        return EventReader(response, build, frozenset(record or ()))

    return parse


class EventReader(Generic[ImageT]):
    """Turns chunks of bytes into events, and assembles the complete answer from them, without I/O.

    Args:
        response: its content is the first chunk; `rest` gives the caller the others.
        build: builds the value object of one member of `images`.
        record: steps that belong to trajectories; the service sends the last step of a row in any case.
    """

    def __init__(self, response: Response, build: _answers.Build[ImageT], record: frozenset[int]) -> None:
        self.rest: Any = response.rest
        self.finished = False
        self._request_id = response.request_id
        self._build = build
        self._record = record
        self._decoder = Decoder()
        self._events: deque[Event[ImageT] | IgnError] = deque()
        self._steps: dict[int, list[dict[str, Any]]] = {}
        self.feed(response.content)

    def feed(self, chunk: bytes | None) -> None:
        """Add the next chunk; None means the end of the stream."""
        if chunk is None:
            self._fail(UnexpectedAnswer("the stream ended before its answer", self._request_id))
            return
        for event in self._decoder.feed(chunk):
            if not self.finished:
                self._take(event)

    def next(self) -> Event[ImageT] | None:
        """The next event; None if it needs another chunk, or if `finished` is True and there is no other event.

        Raises:
            StatusError: the service failed after the start of the stream.
            UnexpectedAnswer: the stream does not come from ign-service, or it ended early.
        """
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, IgnError):
            raise event
        return event

    def _take(self, event: ServerSentEvent) -> None:
        try:
            parsed = self._read(event.event, event.data)
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            failure = UnexpectedAnswer(f"an event {event.event!r} that cannot be read: {exc!r}", self._request_id)
            failure.__cause__ = exc
            self._fail(failure)
            return
        if parsed is not None:
            self._events.append(parsed)
            self.finished = self.finished or isinstance(parsed, Done)

    def _read(self, name: str, data: str) -> Event[ImageT] | None:
        if name not in ("step", "progress", "done", "error"):
            return None  # an event of a later version of the service
        document = json.loads(data)
        if name == "step":
            self._steps.setdefault(document["index"], []).append(document)
            return _answers.step(document)
        if name == "progress":
            return Progress(**{key: document[key] for key in ("steps_done", "steps", "rows_done", "rows")})
        if name == "done":
            members = [self._with_images(member) for member in document["images"]]
            return Done(answer=_answers.images_of({**document, "images": members}, self._build))
        self._fail(status_error(problem_from(document, document["status"], self._request_id)))
        return None

    def _with_images(self, member: dict[str, Any]) -> dict[str, Any]:
        """A member of the event `done`, which has no images, with the images of the earlier events."""
        steps = self._steps[member["index"]]
        recorded = [step for step in steps if step["step"] in self._record]
        return {**member, "data": steps[-1]["data"], "trajectory": recorded}

    def _fail(self, failure: IgnError) -> None:
        self._events.append(failure)
        self.finished = True


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
