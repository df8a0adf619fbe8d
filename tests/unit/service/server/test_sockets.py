"""The listening socket at its end; `test_main.py` holds its beginning."""

import socket
import sys

import pytest

from service.server import uvicorn_server


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_after_the_handshakes_stop_the_connections_made_before_are_accepted() -> None:
    with uvicorn_server.bind("127.0.0.1", 0) as listener, uvicorn_server.listen_alone(listener):
        listener.setblocking(False)
        address = listener.getsockname()
        clients = [socket.create_connection(address) for _ in range(3)]
        uvicorn_server.stop_handshakes(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        accepted = list(uvicorn_server.accept_waiting(listener))
        assert [each.getpeername() for each in accepted] == [each.getsockname() for each in clients]
        for ours, theirs in zip(accepted, clients, strict=True):  # the filter lets their data pass
            theirs.sendall(b"request")
            assert ours.recv(100) == b"request"
            ours.close()
            theirs.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)
