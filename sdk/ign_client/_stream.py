"""Event streams, in three layers: bytes become server-sent events, those become `Event`s, and
iterators do the I/O.

```text
chunks ──Decoder──▶ (type, data) ──_Answer──▶ Step | Progress | Done ──Stream──▶ caller
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
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from ign_client import _answers
from ign_client._errors import UnexpectedAnswer, status_error, unexpected
from ign_client._results import Done, Image, Progress, Step
from ign_client._wire import EVENT_S, EVENTS, Response, complete

ImageT = TypeVar("ImageT", bound=Image)
Event = Step | Progress | Done[ImageT]
Events = AsyncGenerator[Event[ImageT], None]


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


@dataclass(slots=True)
class _Answer(Generic[ImageT]):
    """Turns server-sent events into events, and assembles the complete answer from them.

    ``record`` are the steps of trajectories; the service sends the last step of a row in any case.
    """

    kind: type[ImageT]
    expected: _answers.Expected
    record: Sequence[int]
    request_id: str | None
    steps: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def read(self, name: str, data: str) -> Event[ImageT] | None:
        """An event; None for one of a later version of the service."""
        if name not in ("step", "progress", "done", "error"):
            return None
        document = json.loads(data)
        if name == "step":
            step = _answers.step(self.expected, document)
            self.steps.setdefault(step.index, []).append(document)
            return step
        if name == "progress":
            return _answers.value(Progress, document)
        if name == "done":
            document["images"] = [self._with_images(member) for member in document["images"]]
            return Done(answer=_answers.images_of(self.kind, self.expected, document))
        status = _answers.typed(document["status"], int)
        raise status_error(document, status, self.request_id, {})

    def _with_images(self, member: dict[str, Any]) -> dict[str, Any]:
        """A member of the event `done`, which has no images, with the images of the earlier
        events.
        """
        steps = self.steps[member["index"]]
        recorded = [step for step in steps if step["step"] in self.record]
        return {**member, "data": steps[-1]["data"], "trajectory": recorded}


def events_of(
    kind: type[ImageT], expected: _answers.Expected, record: Sequence[int], response: Response
) -> Events[ImageT]:
    """The events of a response."""
    if response.rest is None:
        raise ValueError(f"expected {EVENTS}, not {response.media_type!r}")
    return _read(_Answer(kind, expected, record, response.request_id), response, response.rest)


async def _read(
    answer: _Answer[ImageT], response: Response, rest: AsyncGenerator[bytes, None]
) -> Events[ImageT]:
    decoder = Decoder()
    chunk: bytes | None = response.content
    async with aclosing(rest):
        while chunk is not None:
            for name, data in decoder.feed(chunk):
                with unexpected(f"an event {name!r:.80} that cannot be read", answer.request_id):
                    event = answer.read(name, data)
                if event is None:
                    continue
                yield event
                if isinstance(event, Done):
                    return
                response.limit.renew(EVENT_S)
                response.limit.names = f"{EVENT_S:g} s without an event"
            chunk = await anext(rest, None)
    raise UnexpectedAnswer("the stream ended before its answer", answer.request_id)


async def _started(start: Callable[[], Awaitable[Events[ImageT]]]) -> Events[ImageT]:
    async with aclosing(await start()) as events:
        async for event in events:
            yield event


class _Stream(Generic[ImageT]):
    def __init__(self, start: Callable[[], Awaitable[Events[ImageT]]]) -> None:
        self._events = _started(start)


class AsyncStream(_Stream[ImageT], AsyncIterator[Event[ImageT]]):
    """Like `Stream`, for `async with` and `async for`; close it with `aclose`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Event[ImageT]:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Close the connection; a second call has no effect."""
        await self._events.aclose()


class Stream(_Stream[ImageT], Iterator[Event[ImageT]]):
    """Iterator over `Step`, `Progress` and at the end `Done`. The request is sent when the first
    event is read.

    Closing the stream, or leaving the `with` block, stops the computation. A stream cannot be
    resumed.

    Raises:
        IgnError: until the first event, as any method. Later `StatusError` if the service failed,
        `TransportError` if the connection broke, `UnexpectedAnswer` if the stream ended early.
    """

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
