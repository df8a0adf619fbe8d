"""Read events and the final answer from an event stream, without I/O.

`_sse` splits bytes into server-sent events; this module gives them their meaning; `_streams` does the I/O.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ign_client import _answers
from ign_client._errors import IgnError, UnexpectedAnswer, status_error
from ign_client._problems import from_document
from ign_client._results import Done, Image, Progress, Step
from ign_client._sse import Decoder, ServerSentEvent
from ign_client._wire import Response

EVENTS: Final = "text/event-stream"
ImageT = TypeVar("ImageT", bound=Image)
Event: TypeAlias = Step | Progress | Done[ImageT]


def events(build: _answers.Build[ImageT], record: Sequence[int] | None) -> Callable[[Response], "EventReader[ImageT]"]:
    """A parser of event streams whose pictures ``build`` creates; ``record``: the steps that were requested."""

    def parse(response: Response) -> EventReader[ImageT]:
        if response.rest is None:
            raise ValueError(f"expected {EVENTS}, not {response.media_type!r}")
        return EventReader(response, build, frozenset(record or ()))

    return parse


class EventReader(Generic[ImageT]):
    """Turns chunks of bytes into events, and assembles the complete answer from them.

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
            members = [self._with_pictures(member) for member in document["images"]]
            return Done(answer=_answers.images_of({**document, "images": members}, self._build))
        self._fail(status_error(from_document(document, status=document["status"], request_id=self._request_id)))
        return None

    def _with_pictures(self, member: dict[str, Any]) -> dict[str, Any]:
        """A member of the event `done`, which has no pictures, with the pictures of the earlier events."""
        steps = self._steps[member["index"]]
        recorded = [step for step in steps if step["step"] in self._record]
        return {**member, "data": steps[-1]["data"], "trajectory": recorded}

    def _fail(self, failure: IgnError) -> None:
        self._events.append(failure)
        self.finished = True
