"""From the bytes of an event stream to what happened, without I/O."""

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
    """How to read a stream of pictures of one kind, of which these steps were asked for."""

    def parse(response: Response) -> EventReader[ImageT]:
        if response.rest is None:
            raise ValueError(f"expected {EVENTS}, not {response.media_type!r}")
        return EventReader(response, build, frozenset(record or ()))

    return parse


class EventReader(Generic[ImageT]):
    """Takes pieces, gives events, and puts the whole answer together.

    Args:
        response: its first piece is taken; `rest` is for the caller to go on with.
        build: from a member of `images` to its value object.
        record: steps that belong to trajectories; a row's last step comes without being asked for.
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

    def feed(self, piece: bytes | None) -> None:
        """Take the next piece; None is the end."""
        if piece is None:
            self._fail(UnexpectedAnswer("the stream ended before its answer", self._request_id))
            return
        for event in self._decoder.feed(piece):
            if not self.finished:
                self._take(event)

    def next(self) -> Event[ImageT] | None:
        """The next event, or None where another piece is needed, or `finished` says that there is none.

        Raises:
            StatusError: the service failed after the stream had begun.
            UnexpectedAnswer: this is no stream of ign-service's, or it ended early.
        """
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, IgnError):
            raise event
        return event

    def _take(self, event: ServerSentEvent) -> None:
        try:
            found = self._read(event.event, event.data)
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            failure = UnexpectedAnswer(f"an event {event.event!r} that cannot be read: {exc!r}", self._request_id)
            failure.__cause__ = exc
            self._fail(failure)
            return
        if found is not None:
            self._events.append(found)
            self.finished = self.finished or isinstance(found, Done)

    def _read(self, name: str, data: str) -> Event[ImageT] | None:
        if name not in ("step", "progress", "done", "error"):
            return None  # of a later version
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
        """A member of the last event, with the pictures that came before it."""
        steps = self._steps[member["index"]]
        recorded = [step for step in steps if step["step"] in self._record]
        return {**member, "data": steps[-1]["data"], "trajectory": recorded}

    def _fail(self, failure: IgnError) -> None:
        self._events.append(failure)
        self.finished = True
