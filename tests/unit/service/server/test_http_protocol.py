import asyncio
import math
import re
import socket
import time
from collections.abc import Callable
from typing import cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.api.limits import InFlightRequests
from service.server.early_rejection import EarlyRejection, Pacer
from service.server.http_protocol import HttpProtocol
from service.server.rejected_connections import RejectedConnections
from service.server.uvicorn_server import config
from service.server.write_coalescer import MAX_JOINED, WriteCoalescer

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"body"


class Wire(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__({"peername": "somebody"})
        self.done: list[bytes | str] = []
        self.closing, self.unread = False, 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def resume_reading(self) -> None:
        self.done.append("reads on")


def joined(parts: list[bytes | str]) -> bytes:
    return b"".join(part for part in parts if isinstance(part, bytes))


def written(use: Callable[[WriteCoalescer, Wire], None]) -> list[bytes | str]:
    """What reached the wire by the end of the turn of the event loop in which this was done."""

    async def main() -> list[bytes | str]:
        wire = Wire()
        use(WriteCoalescer(wire, (), Pacer(1)), wire)
        await asyncio.sleep(0)
        return wire.done

    return asyncio.run(main())


def test_connections_read_on_in_turn() -> None:
    async def main() -> None:
        reads, wires = Pacer(2), [Wire() for _ in range(5)]
        wires[3].closing = True
        for wire in wires:
            WriteCoalescer(wire, (), reads).resume_reading()
        begun = []
        for _ in range(3):
            begun.append([wire.done == ["reads on"] for wire in wires])
            await asyncio.sleep(0)
        assert begun == [
            [True, True, False, False, False],
            [True, True, True, False, False],
            [True, True, True, False, True],
        ]

    asyncio.run(main())


def test_a_connection_with_waiting_requests_does_not_read_on() -> None:
    async def main() -> None:
        wire = Wire()
        WriteCoalescer(wire, ["a request"], Pacer(1)).resume_reading()
        assert wire.done == []

    asyncio.run(main())


def test_head_and_body_leave_together() -> None:
    def use(transport: WriteCoalescer, wire: Wire) -> None:
        transport.write(HEAD)
        assert wire.done == []
        transport.write(BODY)
        assert wire.done == [HEAD + BODY]

    assert written(use) == [HEAD + BODY]


def test_a_head_alone_leaves_at_the_end_of_the_turn() -> None:
    assert written(lambda transport, _: transport.write(HEAD)) == [HEAD]


def test_answers_of_one_turn_stay_in_order() -> None:
    def use(transport: WriteCoalescer, _: Wire) -> None:
        for i in range(5):
            transport.write(b"%d" % i)

    assert joined(written(use)) == b"01234"


@pytest.mark.parametrize(("size", "writes"), [(MAX_JOINED, 1), (MAX_JOINED + 1, 2)])
def test_a_long_body_is_not_copied(size: int, writes: int) -> None:
    def use(transport: WriteCoalescer, _: Wire) -> None:
        transport.write(HEAD)
        transport.write(bytes(size))

    parts = written(use)
    assert len(parts) == writes
    assert joined(parts) == HEAD + bytes(size)


def test_closing_sends_what_is_held_first() -> None:
    def use(transport: WriteCoalescer, _: Wire) -> None:
        transport.write(HEAD)
        transport.close()

    assert written(use) == [HEAD, "closed"]


@pytest.mark.parametrize(("unread", "end"), [(0, ["closed"]), (1, ["closed", "aborted"])])
def test_closing_now_does_not_wait_for_who_does_not_read(unread: int, end: list[str]) -> None:
    def use(transport: WriteCoalescer, wire: Wire) -> None:
        wire.unread = unread
        transport.close_now()

    assert written(use) == end


def test_nothing_is_written_to_a_connection_that_is_gone() -> None:
    def use(transport: WriteCoalescer, wire: Wire) -> None:
        transport.write(HEAD)
        wire.closing = True

    assert written(use) == []


def test_the_rest_is_the_transports_own() -> None:
    def use(transport: WriteCoalescer, _: Wire) -> None:
        assert transport.get_extra_info("peername") == "somebody"
        assert not transport.is_closing()

    assert written(use) == []


def test_uvicorn_calls_the_hook_that_starts_requests() -> None:
    """The hook is private in uvicorn. Without it, requests would start unpaced, and deadlines would count too late."""
    arrivals: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            arrivals.append(scope["state"]["arrival"])
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    async def main(listener: socket.socket) -> bytes:
        server = uvicorn.Server(config(app, EarlyRejection(in_flight=InFlightRequests(), limit=1)))
        serving = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        server.should_exit = True
        await serving
        return answer

    before = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(main(listener)).startswith(b"HTTP/1.1 200 ")
    assert len(arrivals) == 1
    assert before <= arrivals[0] <= time.monotonic()


def test_a_stopping_server_reads_what_rejected_connections_have_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """To close a connection with an unread request would reset it."""
    held: list[Callable[[], None]] = []
    monkeypatch.setattr(RejectedConnections, "on_response", lambda *_: True)
    monkeypatch.setattr(RejectedConnections, "wait", lambda _, read_on, loop: held.append(read_on))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("every request is rejected before")

    async def main(listener: socket.socket) -> None:
        how = config(app, EarlyRejection(in_flight=InFlightRequests(), limit=0))
        how.lifespan = "off"
        server = uvicorn.Server(how)
        serving = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        for number in range(2):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            if number == 1:
                (connection,) = server.server_state.connections
                cast(HttpProtocol, connection).finish(math.inf)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            assert len(held) == number + 1
        writer.close()
        server.should_exit = True
        await serving

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(asyncio.wait_for(main(listener), 30))
