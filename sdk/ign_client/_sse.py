"""Split bytes into server-sent events (HTML standard, section 9.2). `_events` gives the events their meaning."""

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event.

    Args:
        event: its type; ``message`` by default.
        data: its data lines, joined by line feeds.
    """

    event: str
    data: str


class Decoder:
    """Incremental decoder: it takes chunks that may end anywhere, and returns the complete events.

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
