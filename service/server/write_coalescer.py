"""A transport that writes the head of a response together with its body."""

import asyncio
from collections.abc import Callable, Sized
from typing import Any, Final

from service.server.early_rejection import Pacer
from service.server.sockets import bytes_in_system

MAX_JOINED: Final = 1 << 16
"""Bytes of a body; copying a longer one costs more than a second write."""


class WriteCoalescer:
    """A transport that joins the first two writes of an event loop iteration.

    It holds the first write until the second one or the end of the iteration.

    Args:
        transport: the transport behind it.
        pipeline: the requests that wait for the response before theirs; while there are any, reading stays paused.
        reads: paces reading on after a pause, which large bodies make.
        lingers: called before the connection closes; returns whether the client may still send, see `close`.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        pipeline: Sized,
        reads: Pacer,
        lingers: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport, self._pipeline, self._reads, self._lingers = transport, pipeline, reads, lingers
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self.is_closing = transport.is_closing
        self.reading_is_held = False
        """Whether reading stays paused until `read_on`."""
        self._has_ended = False  # this half of the connection
        self._unsent, self._taken_at = 0, 0.0

    def write(self, data: bytes) -> None:
        """Write the bytes, at the end of this iteration at the latest."""
        held = self._held
        if self._has_ended:  # the application may not know yet
            return
        if not held:
            self._held = data
            self._loop.call_soon(self._flush)
        elif len(data) > MAX_JOINED:
            self._flush()
            self._transport.write(data)
        else:
            self._held = b""
            if not self.is_closing():
                self._transport.write(held + data)

    def write_now(self, data: bytes) -> None:
        """Write a whole response at once."""
        self._flush()
        if not (self._has_ended or self.is_closing()):
            self._transport.write(data)

    def close(self) -> None:
        """Write what is held, and close; or only this half, if the client still sends.

        A close with unread bytes would reset the connection, and the client would lose the response.
        """
        self._flush()
        if self.is_closing() or not self._lingers():
            self._transport.close()
        else:
            self._has_ended = True
            self._transport.write_eof()
            self._transport.resume_reading()

    def close_now(self) -> None:
        """Write what is held, and close, without waiting for a client that does not read."""
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._transport.abort()

    def resume_reading(self) -> None:
        """Read on in turn, unless requests wait: uvicorn calls this when a request reads its body."""
        self._reads.run(self.resume_reading_now, self._loop.call_soon)

    def resume_reading_now(self) -> None:
        """Read on, unless requests wait, reading is held, or the connection closes."""
        if not (self._pipeline or self.reading_is_held or self.is_closing()):
            self._transport.resume_reading()

    def hold_reading(self) -> None:
        """Pause reading until `read_on`."""
        self.reading_is_held = True
        self._transport.pause_reading()

    def read_on(self) -> None:
        """End the pause of `hold_reading`."""
        self.reading_is_held = False
        self.resume_reading_now()

    def taken_at(self, now: float) -> float:
        """When the client was last seen to take some of what is sent to it, or had nothing to take.

        Args:
            now: event loop time.
        """
        before, self._unsent = self._unsent, self.unsent()
        if not before or self._unsent < before:
            self._taken_at = now
        return self._taken_at

    def unsent(self) -> int:
        """Bytes that the client has not taken; those that the system holds count only beside others, or at the end.

        The system asks for more only when a large part of its buffer is free, so the number of the others alone would
        not tell that a client reads slowly.
        """
        size = self._transport.get_write_buffer_size()
        return size + bytes_in_system(self._transport.get_extra_info("socket")) if size or self._has_ended else 0

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:  # everything else is the transport's own
        return getattr(self._transport, name)
