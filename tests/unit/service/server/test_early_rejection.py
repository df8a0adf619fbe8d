import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from service.api.problems import problem_response
from service.api.limits import TOO_MANY, InFlightRequests
from service.domain.errors import TooManyConnections
from service.observability.logs import Observe
from service.server.early_rejection import (
    MAX_PLAIN_HEADERS,
    MAX_STARTS_PER_TICK,
    EarlyRejection,
    plain_target,
)

LIMIT = 4


class Loop:
    """A loop of which the test turns the handle."""

    def __init__(self) -> None:
        self.ready: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.ready.append(callback)

    def turn(self) -> None:
        for _ in range(len(self.ready)):
            self.ready.popleft()()


def parsed(answer: bytes | None) -> tuple[dict[str, str], dict[str, Any]]:
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = (line.split(": ", 1) for line in head.decode().split("\r\n"))
    return {name.lower(): value for name, value in lines}, json.loads(body)


def make(limit: int = LIMIT, observe: Observe | None = None) -> EarlyRejection:
    return EarlyRejection(in_flight=InFlightRequests(), limit=limit, observe=observe)


def test_it_is_full_at_the_limit() -> None:
    in_flight = InFlightRequests()
    early = EarlyRejection(in_flight=in_flight, limit=2)
    in_flight.enter()
    assert not early.is_full()
    second = in_flight.enter()
    assert early.is_full()
    in_flight.leave(second)
    assert not early.is_full()


def test_those_count_too_who_have_only_begun_or_wait() -> None:
    loop = Loop()
    early = make(limit=MAX_STARTS_PER_TICK + 2)
    for _ in range(MAX_STARTS_PER_TICK + 1):
        early.admit(lambda: None, loop.call_soon)
    assert not early.is_full()
    early.admit(lambda: None, loop.call_soon)
    assert early.is_full()
    loop.turn()
    assert not early.is_full()


def test_a_refusal_is_what_the_application_would_have_answered() -> None:
    own = problem_response(TooManyConnections(TOO_MANY), "mine")
    headers, body = parsed(make(0).rejection(b"POST", [(b"host", b"x"), (b"x-request-id", b"mine")]))
    assert headers == dict(own.headers) | {"x-request-id": "mine"}
    assert body == json.loads(bytes(own.body))


def test_the_length_is_that_of_the_body() -> None:
    answer = make(0).rejection(b"POST", [])
    headers, _ = parsed(answer)
    assert answer is not None
    assert int(headers["content-length"]) == len(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("given", [b"", b"two words", b"x\xff", b"a" * 129])
def test_a_bad_id_is_replaced(given: bytes) -> None:
    headers, body = parsed(make(0).rejection(b"POST", [(b"x-request-id", given)]))
    assert body["request_id"] == headers["x-request-id"]
    assert len(body["request_id"]) == 32


@pytest.mark.parametrize(("method", "headers"), [(b"GET", []), (b"HEAD", []), (b"POST", [(b"origin", b"null")])])
def test_what_it_leaves_to_the_application(method: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    assert make(0).rejection(method, headers) is None


PLAIN = b"POST /project?steps=1 HTTP/1.1\r\nHost: x\r\nAccept: a/b\r\nContent-Length: 4\r\n\r\nbody"


def test_a_plain_request_gets_the_same_refusal_unparsed() -> None:
    seen: list[str] = []
    early = make(0, lambda route, *_: seen.append(route))
    unparsed, body = parsed(early.plain_rejection(PLAIN, "192.0.2.1"))
    headers, _ = parsed(early.rejection(b"POST", [], target=b"/project?steps=1"))
    assert unparsed == headers | {"x-request-id": body["request_id"]}
    assert seen == ["unmatched", "unmatched"]
    assert plain_target(PLAIN) == b"/project?steps=1"
    assert plain_target(PLAIN.replace(b"4", b"0").removesuffix(b"body")) == b"/project?steps=1"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"GET"),
        (b"POST", b"post"),
        (b"/project", b"project"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Host: x\r\n", b""),
        (b"Host: x", b"Host: x\r\nHost: x"),
        (b": 4", b": 3"),
        (b": 4", b": 5"),
        (b": 4", b": +4"),
        (b": 4", b": 4, 4"),
        (b": 4", b": 4\r\nContent-Length: 4"),
        (b"Content-Length: 4\r\n", b""),
        (b"Content-Length: 4", b"Content-Length : 4"),
        (b"Content-Length: 4", b"X: y\nContent-Length: 4"),
        (b"Content-Length: 4", b"X: y\rContent-Length: 4"),
        (b"Accept: a/b", b"Accept: a\r\n /b"),
        (b"Accept: a/b", b"Accept: a\n/b"),
        (b"Accept: a/b", b"Accept: a\r/b"),
        (b"Accept: a/b", b": a/b"),
        (b"Accept: a/b", b"Accept"),
        (b"Accept: a/b", b"Transfer-Encoding: chunked"),
        (b"Accept: a/b", b"connection: close"),
        (b"Accept: a/b", b"Expect: 100-continue"),
        (b"Accept: a/b", b"Upgrade: h2c"),
        (b"Accept: a/b", b"X-Request-ID: mine"),
        (b"Accept: a/b", b"traceparent: x"),
        (b"Accept: a/b", b"Origin: null"),
        (b"Accept: a/b\r\n", b"".join(b"a%d: b\r\n" % i for i in range(MAX_PLAIN_HEADERS))),
        (b"body", b"bod"),
        (b"body", b"body" + PLAIN),
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(old: bytes, new: bytes) -> None:
    assert old in PLAIN
    assert plain_target(PLAIN.replace(old, new, 1)) is None


def test_a_refusal_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, int, object]] = []

    def observe(route: str, status: int, seconds: float, state: Mapping[str, Any]) -> None:
        seen.append((route, status, state["problem"]))

    with caplog.at_level(logging.INFO, "service.access"):
        make(0, observe).rejection(b"POST", [(b"x-request-id", b"mine")])
    assert seen == [("unmatched", 503, "too_many_connections")]
    assert [record.getMessage() for record in caplog.records] == ["mine POST unmatched 503 0.0 ms"]


def test_an_idle_service_begins_at_once() -> None:
    begun: list[int] = []
    make().admit(lambda: begun.append(0), Loop().call_soon)
    assert begun == [0]


def test_so_many_a_turn_in_the_order_of_arrival() -> None:
    early, loop, begun = make(), Loop(), list[int]()
    sizes = []
    for i in range(2 * MAX_STARTS_PER_TICK + 1):
        early.admit(lambda i=i: begun.append(i), loop.call_soon)  # type: ignore[misc]
    while True:
        sizes.append(len(begun))
        if not loop.ready:
            break
        loop.turn()
        if len(sizes) == 1:  # one more, behind those who wait
            early.admit(lambda: begun.append(2 * MAX_STARTS_PER_TICK + 1), loop.call_soon)
    assert sizes[:3] == [MAX_STARTS_PER_TICK, 2 * MAX_STARTS_PER_TICK, 2 * MAX_STARTS_PER_TICK + 2]
    assert begun == list(range(2 * MAX_STARTS_PER_TICK + 2))
    assert len(sizes) == 4  # the last turn begins nothing, and asks for no other
