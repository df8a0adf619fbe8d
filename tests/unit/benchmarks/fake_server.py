"""A server on a free port whose every answer is decided by a function: for what measures
servers.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import StreamRequestHandler, ThreadingTCPServer

# What has been seen so far → the bytes to send, and whether the connection then closes.
Reply = Callable[["Seen"], tuple[bytes, bool]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Seen:
    """What a server has seen so far."""

    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0


@contextmanager
def fake_server(reply: Reply) -> Iterator[Seen]:
    """Serve until the block ends, by when clients must be gone; ``reply`` is called for every
    request.
    """

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            seen.connections += 1
            with contextlib.suppress(ConnectionError):
                while head := b"".join(itertools.takewhile(b"\r\n".__ne__, self.rfile)):
                    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    seen.requests.append(head + b"\r\n" + self.rfile.read(int(length or 0)))
                    data, closes = reply(seen)
                    self.wfile.write(data)
                    if closes:
                        return

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        seen = Seen(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()
