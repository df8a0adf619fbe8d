"""uvicorn's HTTP protocol with early rejection, paced starts and joined writes."""

import asyncio
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.server.early_rejection import EarlyRejection

_UNAVAILABLE: Final = b"HTTP/1.1 503 Service Unavailable\r\n"
_REJECTED = cast(RequestResponseCycle, SimpleNamespace(response_complete=True, message_event=asyncio.Event()))
_MAX_JOINED: Final = 1 << 16  # bytes: copying a longer body costs more than a second write


class HttpProtocol(HttpToolsProtocol):
    """Writes the head of a response together with its body, and asks `EarlyRejection` about each request.

    uvicorn writes head and body separately: that takes two system calls and wakes the client twice. The overridden
    hooks are private in uvicorn, so pyproject.toml limits its version.

    Args:
        early_rejection: None to accept and start every request at once.
    """

    def __init__(self, *args: Any, early_rejection: EarlyRejection | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._early_rejection = early_rejection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wrap the transport."""
        super().connection_made(cast(asyncio.Transport, WriteCoalescer(transport)))

    def on_headers_complete(self) -> None:
        """Reject the request before anything is created for it, if there are too many."""
        rejecting = self._early_rejection
        # A pipelined request waits for the response before it, so it cannot be answered here.
        if rejecting is not None and rejecting.is_full() and self._previous_is_answered():
            rejection = rejecting.rejection(self.parser.get_method(), self.headers)
            if rejection is not None:
                self._reject(rejection)
                return
        super().on_headers_complete()

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # None before the first request, which uvicorn's annotation omits

    def _previous_is_answered(self) -> bool:
        return self._cycle is None or self._cycle.response_complete

    def _reject(self, rejection: bytes) -> None:
        if self._cycle is None:
            self.cycle = _REJECTED  # uvicorn discards the body of a request whose response is complete
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        connection = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((_UNAVAILABLE, *head, connection, rejection)))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        start = partial(super()._start_asgi_task, cycle, app)
        if self._early_rejection is None:
            start()
        else:
            # The deadline of a request counts from here, also while it waits for its start.
            cast(dict[str, Any], cycle.scope)["state"]["arrival"] = time.monotonic()
            self._early_rejection.admit(start, self.loop.call_soon)


class WriteCoalescer:
    """A transport that joins the first two writes of an event loop iteration.

    It holds the first write until the second one or the end of the iteration.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""

    def write(self, data: bytes) -> None:
        """Write the bytes, at the end of this iteration at the latest."""
        if not self._held:
            self._held = data
            self._loop.call_soon(self._flush)
        elif len(data) > _MAX_JOINED:
            self._flush()
            self._transport.write(data)
        else:
            self._held += data
            self._flush()

    def close(self) -> None:
        """Write what is held, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:  # everything else is the transport's own
        return getattr(self._transport, name)
