"""Rejects requests in the HTTP parser, and paces the start of the others.

`service.api.middleware.in_flight.ConcurrencyLimitMiddleware` also rejects requests beyond the limit. But there, a
rejection costs a large part of a response, and under overload accepted requests lack this time. In the parser, a
rejection costs little more than reading the request.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from service.api.http.problems import problem_response
from service.api.middleware.endpoint_names import EndpointNames
from service.api.middleware.in_flight import TOO_MANY, InFlightRequests
from service.domain.errors import TooManyConnections
from service.observability.logs import Observe, State, choose_request_id, log_request, parse_traceparent

MAX_STARTS_PER_TICK: Final = 8
"""Requests started in one iteration of the event loop, about 4 ms of work. With more, rejections and finished rows
would wait too long for their turn."""
MAX_PLAIN_HEADERS: Final = 64
_MAX_DIGITS: Final = 12  # of a `Content-Length`

_REQUEST_LINE: Final = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n")
_HEADER_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NEED_PARSER: Final = frozenset(
    {b"connection", b"expect", b"origin", b"traceparent", b"transfer-encoding", b"upgrade", b"x-request-id"}
)
_ID: Final = "{request_id}"  # placeholder in the prepared response; a request id contains no brace

CallSoon = Callable[[Callable[[], None]], object]
"""`loop.call_soon`."""


class Pacer:
    """Runs at most ``limit`` actions in one iteration of the event loop, in the order of their arrival.

    An iteration in which a lot else is to do takes longer, so the actions then take a smaller share of the time.

    Args:
        limit: most actions in one iteration, ≥ 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.waiting: deque[Callable[[], None]] = deque()
        """Actions that wait for their turn."""
        self.done = 0
        """Actions that have run in this iteration."""

    def run(self, action: Callable[[], None], call_soon: CallSoon) -> None:
        """Run an action now, or in a later iteration if ``limit`` have run in this one."""
        if self.done >= self._limit:
            self.waiting.append(action)
            return
        if not self.done:
            call_soon(partial(self._next_tick, call_soon))
        self.done += 1
        action()

    def _next_tick(self, call_soon: CallSoon) -> None:
        self.done = 0
        for _ in range(min(self._limit, len(self.waiting))):
            self.run(self.waiting.popleft(), call_soon)


class EarlyRejection:
    """Rejects a POST while too many requests are in flight, and starts the accepted ones in small groups.

    Belongs to one event loop.

    Args:
        in_flight: the requests in flight.
        limit: maximum of requests in flight, including those that wait here.
        observe: called for each rejection, as `AccessLogMiddleware` calls it for other responses.
        endpoints: names the endpoints of rejected requests.
    """

    def __init__(
        self,
        *,
        in_flight: InFlightRequests,
        limit: int,
        observe: Observe | None = None,
        endpoints: EndpointNames | None = None,
    ) -> None:
        self._in_flight = in_flight
        self._limit = limit
        self._observe = observe
        self._endpoints = endpoints or EndpointNames()
        self._starts = Pacer(MAX_STARTS_PER_TICK)
        answer = problem_response(TooManyConnections(TOO_MANY), _ID)
        self._status = answer.status_code
        self._before, self._after = bytes(answer.body).split(_ID.encode())
        length = b"content-length"
        self._head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers if header[0] != length)

    def is_full(self) -> bool:
        """Whether the limit is reached."""
        starts = self._starts  # from the next iteration on, `ConcurrencyLimitMiddleware` counts those that have run
        in_flight = self._in_flight
        return in_flight.count + in_flight.arriving + starts.done + len(starts.waiting) >= self._limit

    def rejection(
        self, method: bytes, headers: Iterable[tuple[bytes, bytes]], *, target: bytes = b"", peer: str | None = None
    ) -> bytes | None:
        """The response to a request that is rejected, from its first own header on.

        Only a POST is rejected here. Other methods, such as those of health checks, and requests with an `Origin`
        header, whose response needs the headers of `CorsMiddleware`, go to the application.

        Args:
            method: of the request.
            headers: of the request, with names in lower case.
            target: of the request: the path and the query.
            peer: address of the client.

        Returns:
            Headers and body, or None if the application has to respond.
        """
        if method != b"POST":
            return None
        given, traceparents = b"", []
        for name, value in headers:
            if name == b"origin":
                return None
            if name == b"x-request-id":
                given = value
            elif name == b"traceparent":
                traceparents.append(value.decode("latin-1"))
        return self._response(target, peer, given, traceparents)

    def plain_rejection(self, data: bytes, peer: str | None) -> bytes | None:
        """As `rejection`, for data that no parser has read.

        Parsing takes half of the time of a rejection, which accepted requests would lack.

        Args:
            data: received between two messages.
            peer: address of the client.

        Returns:
            Headers and body, or None unless the data is exactly one `POST` that `plain_target` can read.
        """
        target = plain_target(data)
        return None if target is None else self._response(target, peer)

    def _response(self, target: bytes, peer: str | None, given: bytes = b"", traceparents: Sequence[str] = ()) -> bytes:
        request_id = choose_request_id(given.decode("latin-1"))
        shown = request_id.encode("ascii")
        length = len(self._before) + len(shown) + len(self._after)
        trace = parse_traceparent(traceparents) if traceparents else None
        state = {"request_id": request_id, "peer": peer, "problem": TooManyConnections.code, "trace": trace}
        self._record(target, state | {"response_bytes": length})
        return b"%sx-request-id: %s\r\n%scontent-length: %d\r\n\r\n%s%s%s" % (
            self._head,
            shown,
            b"traceparent: %s\r\n" % trace.traceparent.encode("ascii") if trace else b"",
            length,
            self._before,
            shown,
            self._after,
        )

    def _record(self, target: bytes, state: State) -> None:
        endpoint = self._endpoints.find(target.partition(b"?")[0].decode("latin-1"))
        log_request("POST", endpoint, self._status, 0.0, state)
        if self._observe is not None:
            self._observe(endpoint, self._status, 0.0, state)

    def admit(self, start: Callable[[], None], call_soon: CallSoon) -> None:
        """Start a request now, or in a later iteration if `MAX_STARTS_PER_TICK` have started in this one.

        Requests start in the order of their arrival.

        Args:
            start: starts the request.
            call_soon: of the event loop.
        """
        self._starts.run(start, call_soon)


def plain_target(data: bytes) -> bytes | None:
    """The target of a whole HTTP/1.1 POST, if it is plain.

    Its framing must be beyond doubt: names of headers are tokens and occur once, lines end with CR LF, and
    `Content-Length` is the length of what follows. Headers that change the response leave it to the parser.

    Args:
        data: from the first byte of a message on.

    Returns:
        The target, or None if anything else than one such request was received.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        return None
    head, _, body = data[line.end() :].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    pairs = [line.split(b":", 1) for line in lines]
    if len(lines) > MAX_PLAIN_HEADERS or any(len(pair) != 2 for pair in pairs):
        return None
    fields: dict[bytes, bytes] = dict(pairs)
    length = fields.get(b"content-length", b"").strip()
    if (
        len(fields) != len(lines)
        or b"host" not in fields
        or not _NEED_PARSER.isdisjoint(fields)
        or not length.isdigit()
        or len(length) > _MAX_DIGITS
        or int(length) != len(body)
        or not head.count(b"\r") == head.count(b"\n") == len(lines) - 1
        or not _HEADER_NAMES.fullmatch(b"".join(fields))
        or b"" in fields
    ):
        return None
    return line[1]
