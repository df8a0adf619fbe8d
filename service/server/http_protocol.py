"""uvicorn's HTTP protocol as this service overrides it."""

import asyncio
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.server.early_rejection import EarlyRejection

_UNAVAILABLE: Final = b"HTTP/1.1 503 Service Unavailable\r\n"
_REFUSED = cast(RequestResponseCycle, SimpleNamespace(response_complete=True, message_event=asyncio.Event()))
_JOINED: Final = 1 << 16  # bytes: to copy a longer body costs more than a second write


class HttpProtocol(HttpToolsProtocol):
    """Sends the head of an answer together with its body, and asks at the door before it begins a request.

    uvicorn writes head and body one after the other: two system calls, and a client that is woken for half an answer.
    """

    def __init__(self, *args: Any, door: EarlyRejection | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Stand between uvicorn and the socket."""
        super().connection_made(cast(asyncio.Transport, WriteCoalescer(transport)))

    def on_headers_complete(self) -> None:
        """Refuse the request, if it has to be, before anything is made for it."""
        door = self._door
        if door is None or not door.is_full() or not self._answered():
            super().on_headers_complete()
            return
        refusal = door.refusal(self.parser.get_method(), self.headers)
        if refusal is None:
            super().on_headers_complete()
        else:
            self._refuse(refusal)

    @property
    def _last(self) -> RequestResponseCycle | None:
        return self.cycle  # uvicorn's annotation leaves out that there is none before the first request

    def _answered(self) -> bool:
        """Whether the request before this one is: else this one must wait for it, pipelined."""
        return self._last is None or self._last.response_complete

    def _refuse(self, refusal: bytes) -> None:
        if self._last is None:
            self.cycle = _REFUSED  # what is still to come of the body is passed over, as after any complete answer
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        parting = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((_UNAVAILABLE, *head, parting, refusal)))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        begin = partial(super()._start_asgi_task, cycle, app)
        if self._door is None:
            begin()
        else:
            cast(dict[str, Any], cycle.scope)["state"]["arrival"] = time.monotonic()
            self._door.enter(begin, self.loop.call_soon)


class WriteCoalescer:
    """A transport that holds what is written first in a turn of the event loop until more follows, or the turn ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""

    def write(self, data: bytes) -> None:
        if not self._held:
            self._held = data
            self._loop.call_soon(self._release)
        elif len(data) > _JOINED:
            self._release()
            self._transport.write(data)
        else:
            self._held += data
            self._release()

    def close(self) -> None:
        self._release()
        self._transport.close()

    def _release(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:  # the rest is the transport's own
        return getattr(self._transport, name)
