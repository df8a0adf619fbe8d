"""In front of the application: who is refused before anything is done for it, and who has to wait for a moment.

What `service.api.middleware.in_flight.ConcurrencyLimitMiddleware` refuses has cost a good part of what an answer costs by then, and where as many are
refused as answered, that is what the answers lack. Here a refusal costs little more than reading the request.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from service.api.http.problems import problem_response
from service.api.middleware.access_log import UNMATCHED
from service.api.middleware.in_flight import TOO_MANY, InFlightRequests
from service.domain.errors import TooManyConnections
from service.observability.logs import Observe, choose_request_id, log_request

PACE: Final = 8
"""Requests begun in one turn of the event loop; some 4 ms of work. More would keep those waiting who are to be refused,
and those whose rows are done."""

_ID: Final = "{request_id}"  # where the id goes; no id holds a brace

Later = Callable[[Callable[[], None]], object]
"""`loop.call_soon`."""


class EarlyRejection:
    """Refuses a POST while too many requests are in flight, and lets the others in by turns.

    Args:
        in_flight: the requests in flight.
        limit: most of them, those included that wait here.
        observe: told of every refusal, as `service.api.middleware.access_log.AccessLogMiddleware` tells it of others.
    """

    def __init__(self, *, in_flight: InFlightRequests, limit: int, observe: Observe | None = None) -> None:
        self._in_flight = in_flight
        self._limit = limit
        self._observe = observe
        self._waiting: deque[Callable[[], None]] = deque()
        self._begun = 0  # in this turn: from the next one on, `ConcurrencyLimitMiddleware` counts them
        answer = problem_response(TooManyConnections(TOO_MANY), _ID)
        self._status = answer.status_code
        self._before, self._after = bytes(answer.body).split(_ID.encode())
        length = b"content-length"
        self._head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers if header[0] != length)

    def is_full(self) -> bool:
        """Whether no more may enter."""
        return self._in_flight.count + self._begun + len(self._waiting) >= self._limit

    def refusal(self, method: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The answer, from the first header that is its own on; None: let it in, and leave it to `ConcurrencyLimitMiddleware`.

        So is everything but a POST, health among it, and what a page of another origin asks, which may only see an
        answer that `CorsMiddleware` has marked.

        Args:
            method: of the request.
            headers: of the request, their names in lower case.
        """
        if method != b"POST":
            return None
        given = b""
        for name, value in headers:
            if name == b"origin":
                return None
            if name == b"x-request-id":
                given = value
        request_id = choose_request_id(given.decode("latin-1"))
        log_request(request_id, "POST", UNMATCHED, self._status, 0.0)
        if self._observe is not None:
            self._observe(UNMATCHED, self._status, 0.0, {"problem": TooManyConnections.code})
        shown = request_id.encode("ascii")
        length = len(self._before) + len(shown) + len(self._after)
        return b"%sx-request-id: %s\r\ncontent-length: %d\r\n\r\n%s%s%s" % (
            self._head,
            shown,
            length,
            self._before,
            shown,
            self._after,
        )

    def enter(self, begin: Callable[[], None], later: Later) -> None:
        """Call ``begin`` now, or in one of the next turns if `PACE` others have been begun in this one.

        First come, first served. An idle service begins at once.
        """
        if self._begun >= PACE:
            self._waiting.append(begin)
            return
        if not self._begun:
            later(lambda: self._turn(later))
        self._begun += 1
        begin()

    def _turn(self, later: Later) -> None:
        self._begun = 0
        for _ in range(min(PACE, len(self._waiting))):
            self.enter(self._waiting.popleft(), later)
