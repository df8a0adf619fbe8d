"""Event streams, in three layers: bytes become server-sent events, those become `Event`s, and
iterators do the I/O.

```text
chunks ──Decoder──▶ (type, data) ──EventReader──▶ Step | Progress | Done ──Stream──▶ caller
```
"""

import codecs
import io
import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Generic, Self, TypeAlias, TypeVar

from ign_client import _answers
from ign_client._errors import UnexpectedAnswer, problem_from, status_error, unexpected
from ign_client._results import Done, Image, Progress, Step
from ign_client._wire import EVENT_S, EVENTS, Response, complete

ImageT = TypeVar("ImageT", bound=Image)
Event: TypeAlias = Step | Progress | Done[ImageT]


class Decoder:
    """Incremental decoder of server-sent events (HTML standard, section 9.2), for chunks that may
    end anywhere.

    An incomplete event at the end of the stream is dropped. The fields `id` and `retry` concern
    reconnecting only, so they are ignored like comments and unknown fields. A lone CR ends its line
    when the next byte arrives.
    """

    def __init__(self) -> None:
        # A byte order mark at the start is dropped, and invalid UTF-8 is replaced, as the standard
        # says.
        text = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = io.IncrementalNewlineDecoder(text, translate=True)
        self._pieces: list[str] = []  # of an event that has not ended

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """Type and data of each event that ends in the chunk."""
        text = self._text.decode(chunk)
        self._pieces.append(text)
        if "\n" not in text:
            return []
        *events, rest = "".join(self._pieces).split("\n\n")
        self._pieces = [rest]
        return [event for lines in events if (event := _event(lines)) is not None]


def _event(lines: str) -> tuple[str, str] | None:
    fields: dict[str, list[str]] = {"event": [""], "data": []}
    for line in lines.split("\n"):
        name, _, value = line.partition(":")
        if name in fields:
            fields[name].append(value.removeprefix(" "))
    data = fields["data"]
    return (fields["event"][-1] or "message", "\n".join(data)) if data else None


class EventReader(Generic[ImageT]):
    """Turns chunks of bytes into events, and assembles the complete answer from them, without I/O.

    ``record`` are the steps of trajectories; the service sends the last step of a row in any case.
    """

    def __init__(
        self,
        kind: type[ImageT],
        expected: _answers.Expected,
        record: Sequence[int],
        response: Response,
    ) -> None:
        if response.rest is None:
            raise ValueError(f"expected {EVENTS}, not {response.media_type!r}")
        self.first = response.content
        self.rest = response.rest
        self._limit = response.limit
        self._request_id = response.request_id
        self._kind = kind
        self._expected = expected
        self._record = frozenset(record)
        self._decoder = Decoder()
        self._steps: dict[int, list[dict[str, Any]]] = {}

    def feed(self, chunk: bytes | None) -> Iterator[Event[ImageT]]:
        """The events that end in the next chunk; None means the end of the stream, which is then
        incomplete.
        """
        if chunk is None:
            raise UnexpectedAnswer("the stream ended before its answer", self._request_id)
        for name, data in self._decoder.feed(chunk):
            with unexpected(f"an event {name!r:.80} that cannot be read", self._request_id):
                event = self._read(name, data)
            if event is not None:
                yield event
                self._limit.renew(EVENT_S)

    def _read(self, name: str, data: str) -> Event[ImageT] | None:
        if name not in ("step", "progress", "done", "error"):
            return None  # an event of a later version of the service
        document = json.loads(data)
        if name == "step":
            step = _answers.step(self._expected, document)
            self._steps.setdefault(step.index, []).append(document)
            return step
        if name == "progress":
            return _answers.value(Progress, document)
        if name == "done":
            document["images"] = [self._with_images(member) for member in document["images"]]
            return Done(answer=_answers.images_of(self._kind, self._expected, document))
        status = _answers.typed(document["status"], int)
        raise status_error(problem_from(document, status, self._request_id, {}))

    def _with_images(self, member: dict[str, Any]) -> dict[str, Any]:
        """A member of the event `done`, which has no images, with the images of the earlier
        events.
        """
        steps = self._steps[member["index"]]
        recorded = [step for step in steps if step["step"] in self._record]
        return {**member, "data": steps[-1]["data"], "trajectory": recorded}


async def _events(
    start: Callable[[], Awaitable[EventReader[ImageT]]],
) -> AsyncGenerator[Event[ImageT], None]:
    reader = await start()
    chunk: bytes | None = reader.first
    async with aclosing(reader.rest):
        while True:
            for event in reader.feed(chunk):
                yield event
                if isinstance(event, Done):
                    return
            chunk = await anext(reader.rest, None)


class AsyncStream(AsyncIterator[Event[ImageT]], Generic[ImageT]):
    """Like `Stream`, for `async with` and `async for`; close it with `aclose`."""

    def __init__(self, start: Callable[[], Awaitable[EventReader[ImageT]]]) -> None:
        self._events = _events(start)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Event[ImageT]:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Close the connection; a second call has no effect."""
        await self._events.aclose()


class Stream(Iterator[Event[ImageT]], Generic[ImageT]):
    """Iterator over `Step`, `Progress` and at the end `Done`. The request is sent when the first
    event is read.

    Closing the stream, or leaving the `with` block, stops the computation. A stream cannot be
    resumed.

    Raises:
        IgnError: until the first event, as any method. Later `StatusError` if the service failed,
        `TransportError` if the connection broke, `UnexpectedAnswer` if the stream ended early.
    """

    def __init__(self, start: Callable[[], Awaitable[EventReader[ImageT]]]) -> None:
        self._events = _events(start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Event[ImageT]:
        try:
            return complete(anext(self._events))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Close the connection; a second call has no effect."""
        complete(self._events.aclose())
