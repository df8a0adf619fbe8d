"""A connection to the service, for tests of what happens on connections."""

import select
import socket

PATIENCE_S = 300.0  # nothing takes a hundredth of it, unless the machine is busy


class Connection:
    """One connection with a minimal HTTP client."""

    def __init__(self, address: tuple[str, int], source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(address, PATIENCE_S, (source, 0))
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> "Connection":
        self.socket.sendall(data)
        return self

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.stream.readline().split()[1])
        headers = {}
        while (line := self.stream.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers, self.stream.read(int(headers["content-length"]))

    def is_readable(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def is_over(self) -> bool:
        return self.stream.read() == b""

    def close(self) -> None:
        self.stream.close()
        self.socket.close()
