"""A transport that writes the head of a response together with its body."""

import asyncio
from collections.abc import Sized
from typing import Any, Final

from service.server.early_rejection import Pacer

MAX_JOINED: Final = 1 << 16
"""Bytes of a body; copying a longer one costs more than a second write."""


class WriteCoalescer:
    """A transport that joins the first two writes of an event loop iteration.

    It holds the first write until the second one or the end of the iteration.

    Args:
        transport: the transport behind it.
        pipeline: the requests that wait for the response before theirs; while there are any, reading stays paused.
        reads: paces reading on after a pause, which large bodies make.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized, reads: Pacer) -> None:
        self._transport, self._pipeline, self._reads = transport, pipeline, reads
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write the bytes, at the end of this iteration at the latest."""
        held = self._held
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
        if not self.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        """Write what is held, and end this half of the connection."""
        self._flush()
        if not self.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Write what is held, and close."""
        self._flush()
        self._transport.close()

    def resume_reading(self) -> None:
        """Read on in turn, unless requests wait: uvicorn calls this when a request reads its body."""
        self._reads.run(self.resume_reading_now, self._loop.call_soon)

    def resume_reading_now(self) -> None:
        """Read on, unless requests wait or the connection closes."""
        if not self._pipeline and not self.is_closing():
            self._transport.resume_reading()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:  # everything else is the transport's own
        return getattr(self._transport, name)
