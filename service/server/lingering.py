"""What a client sends after the last response on its connection: it is ignored, within limits.

A close with unread bytes would reset the connection, and the client would lose the response.
"""

from typing import Final

_SILENT_S: Final = 1.0
_MAX_BYTES, _MAX_S = 1 << 26, 30.0  # of the rest of a body
_MAX_BYTES_REFUSED, _MAX_S_REFUSED = 1 << 20, 1.0  # of anything after a refusal


class Lingering:
    """The end of one connection. Times are those of the event loop."""

    def __init__(self) -> None:
        self.ignores = False
        """Whether all that arrives is ignored."""
        self.since: float | None = None
        """When the service closed its half of the connection."""
        self._bytes, self._seconds = _MAX_BYTES, _MAX_S
        self._heard_at = 0.0

    def refuse(self) -> None:
        """Ignore what arrives from here on."""
        if not self.ignores:
            self.ignores, self._bytes, self._seconds = True, _MAX_BYTES_REFUSED, _MAX_S_REFUSED

    def begin(self, now: float) -> None:
        """Note that the service closed its half."""
        self.ignores, self.since, self._heard_at = True, now, now

    def ignore(self, size: int, now: float) -> bool:
        """Count ``size`` bytes that are ignored; returns whether there were too many."""
        self._heard_at = now
        self._bytes -= size
        return self._bytes < 0

    def is_late(self, now: float, resumed_at: float) -> bool:
        """Whether the client has been silent, or has gone on to send, for too long.

        Args:
            now: the time.
            resumed_at: end of the last pause of this process; times count from there at the earliest.
        """
        silent, sent = (now - max(start, resumed_at) for start in (self._heard_at, self.since or now))
        return silent > _SILENT_S or sent > self._seconds
