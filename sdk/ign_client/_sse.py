"""Server-sent events, piece by piece, as the HTML standard (section 9.2) frames them."""

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event.

    Args:
        event: its type, ``message`` where none was given.
        data: its lines, joined by line feeds.
    """

    event: str
    data: str


class Decoder:
    """Feed it bytes as they come, cut anywhere; take the events that have become whole.

    An event that is not whole when the stream ends is no event. `id` and `retry` mean nothing without reconnecting,
    and are passed over like comments and unknown fields.
    """

    def __init__(self) -> None:
        # A byte order mark at the start is dropped; what is not UTF-8 is replaced.
        self._text = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line = ""
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """The events that end in this piece."""
        text = self._text.decode(piece)
        if not text:
            return []
        whole = text[1:] if self._after_cr and text.startswith("\n") else text  # CRLF cut in two is one line end
        self._after_cr = text.endswith("\r")
        *lines, self._line = (self._line + whole).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._end_event()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None

    def _end_event(self) -> ServerSentEvent | None:
        event, data = self._event, self._data
        self._event, self._data = "", []
        return ServerSentEvent(event or "message", "\n".join(data)) if data else None
