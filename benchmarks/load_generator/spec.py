"""The input of the load generator: whole requests, and how to send them."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.harness.processes import HOST


def request(
    path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST", host: str = HOST
) -> bytes:
    """A whole HTTP/1.1 request."""
    fields = {"Host": host, **(headers or {})}
    if body or method == "POST":
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A load.

    Args:
        host, port: the server.
        requests: whole HTTP/1.1 requests, sent round robin.
        connections: keep-alive connections; in an open loop also the most requests in flight.
        seconds: time of measuring after ``warmup_s``; a closed loop continues until one answer was counted.
        warmup_s: time of the same load before, which is not counted.
        rate: requests per second of an open loop; None for a closed one.
        seed: of the due times of an open loop.
        grace_s: time to wait for answers at the end.
        pause_s: a client of a closed loop waits a random time of up to so long between an answer and its next request.
        server_pid: a local process whose CPU time, with its descendants, is reported too.
    """

    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    host: str = HOST
    warmup_s: float = 0.5
    rate: float | None = None
    seed: int = 0
    grace_s: float = 40.0
    pause_s: float = 0.0
    server_pid: int | None = None

    def __post_init__(self) -> None:
        if not self.requests or self.connections < 1 or self.seconds <= 0 or min(self.warmup_s, self.pause_s) < 0:
            raise ValueError("needs requests, at least one connection, and time")
        if self.rate is not None and self.rate <= 0:
            raise ValueError("rate must be above 0")

    def to_json(self) -> str:
        """The JSON for the command line."""
        return json.dumps(asdict(self) | {"requests": [base64.b64encode(each).decode() for each in self.requests]})

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: the text is no such JSON.
        """
        fields = json.loads(text)
        return cls(**fields | {"requests": [base64.b64decode(each) for each in fields["requests"]]})
